"""Instances of the kernel of `attention.cuh`, their launch shape and their parameters."""

from __future__ import annotations

import functools
from typing import Annotated, NamedTuple

import torch

from warploom.attention.backends.cuda.rope_turns import RopeTurns
from warploom.attention.backends.cuda.variant_source import MAX_ARGUMENTS, VariantSource
from warploom.attention.options import FEW_ROWS
from warploom.core.jit import Divisor, KernelSpec, ParamStruct, cpp_type, f32, i32, i64, ptr

__all__ = ["THREADS", "AttentionParams", "KernelShape", "attention_spec", "common_config", "kernel_shape", "tile_keys"]

THREADS = 128
NARROW_ROWS, WIDE_ROWS = FEW_ROWS, 64  # of query tiles

_STATIC_BYTES = 12 * 1024  # of each block, with what the driver takes
_SHARED_KILOBYTES = {80: 164, 87: 164, 90: 228, 100: 228, 103: 228}  # of an SM; others have 100
_MOST_STAGES = 6


class AttentionParams(ParamStruct):
    cpp_name = "warploom::attention::AttentionParams"
    q: ptr
    k: ptr
    v: ptr
    out: ptr
    lse: ptr
    qo_indptr: ptr
    kv_lens: ptr
    kv_starts: ptr
    pages: ptr
    starts: ptr
    partial_out: ptr
    partial_lse: ptr
    arrivals: ptr
    logits_scales: ptr
    value_scales: ptr
    sinks: ptr
    mask_indptr: ptr
    tensors: Annotated[ptr, MAX_ARGUMENTS]
    integers: Annotated[i64, MAX_ARGUMENTS]
    q_stride: Annotated[i64, 2]
    k_stride: Annotated[i64, 3]
    v_stride: Annotated[i64, 3]
    out_stride: Annotated[i64, 2]
    lse_stride: Annotated[i64, 2]
    group_size: Divisor
    page_size: Divisor
    numbers: Annotated[f32, MAX_ARGUMENTS]
    logits_scale: f32
    value_scale: f32
    lse_unit: f32
    batch: i32
    q_rows: i32
    num_kv_heads: i32
    lanes: i32
    tile: Annotated[i32, 6]
    causal: i32
    window_left: i32
    logits_scales_step: i32
    value_scales_step: i32


class KernelShape(NamedTuple):
    """Blocks an SM, tiles of keys and values in shared memory, and the bytes of these."""

    blocks_per_sm: int
    stages: int
    smem: int


def tile_keys(head_dim: int, value_dim: int, itemsize: int, has_rope: bool = False) -> int:
    """Keys of a tile: twice as many of 8 bits, so that what a tile takes beside its bytes counts for as much.

    Those that are rotated have 16 bits then, for which there would be no room.

    Examples
    --------
    >>> tile_keys(128, 128, 2), tile_keys(128, 128, 1), tile_keys(256, 256, 1), tile_keys(128, 128, 1, has_rope=True)
    (64, 128, 64, 64)
    """
    return 128 if itemsize == 1 and max(head_dim, value_dim) <= 128 and not has_rope else 64


@functools.cache
def kernel_shape(
    head_dim: int, value_dim: int, itemsize: int, has_wide: bool, arch: int, has_rope: bool = False
) -> KernelShape:
    """As many blocks an SM as have registers, if three stages fit into the shared memory of each.

    Examples
    --------
    >>> [kernel_shape(dim, dim, 2, has_wide=False, arch=90)[:2] for dim in (64, 128, 256)]
    [(3, 4), (2, 3), (1, 3)]
    >>> kernel_shape(256, 256, 2, has_wide=False, arch=86)
    KernelShape(blocks_per_sm=1, stages=1, smem=65536)
    """
    keys = tile_keys(head_dim, value_dim, itemsize, has_rope)
    stage = keys * (_row_bytes(head_dim * itemsize) + _row_bytes(value_dim * itemsize))
    rotated = (
        keys * _row_bytes(head_dim * 2) if has_rope and itemsize == 1 else 0
    )  # 16 bits have no room in their stage
    kilobytes = _SHARED_KILOBYTES.get(arch, 100)
    most = 3 if max(head_dim, value_dim) <= 64 and not has_wide else 2
    for blocks in (most, 2, 1):
        stages = min((kilobytes * 1024 // blocks - _STATIC_BYTES - rotated) // stage, _MOST_STAGES)
        if stages >= 3 or blocks == 1:
            return KernelShape(blocks, stages, stages * stage + rotated)
    raise AssertionError


def _row_bytes(nbytes: int) -> int:
    """Of a row in shared memory."""
    return -(-nbytes // 128) * 128


def common_config(
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype], dims: tuple[int, int], variant: VariantSource
) -> dict[str, str | int]:
    """What every such kernel is compiled for; types of queries, of keys and values, and of outputs."""
    query, key_value, out = dtypes
    return {
        "Query": cpp_type(query),
        "Kv": cpp_type(key_value),
        "Out": cpp_type(out),
        "Variant": variant.cpp_type,
        "kHeadDim": dims[0],
        "kValueDim": dims[1],
    }


@functools.lru_cache(256)
def attention_spec(
    dtype_q: torch.dtype,
    dtype_kv: torch.dtype,
    dtype_o: torch.dtype,
    head_dim: int,
    value_dim: int,
    has_wide: bool,
    shape: KernelShape,
    variant: VariantSource,
    has_rope: bool = False,
) -> KernelSpec:
    """The kernel for these types, with tiles of 64 query rows or without, and with the variants compiled in.

    `has_rope`: it takes `RopeTurns` too, by which it rotates queries and keys.
    """
    return KernelSpec(
        family="attention",
        header=f"warploom/attention/attention{'_fp8' if dtype_kv.itemsize == 1 else ''}.cuh",
        kernel="warploom::attention::attention_kernel",
        prelude=variant.prelude,
        config={
            **common_config((dtype_q, dtype_kv, dtype_o), (head_dim, value_dim), variant),
            "kHasWide": has_wide,
            "kTileKeys": tile_keys(head_dim, value_dim, dtype_kv.itemsize, has_rope),
            "kStages": shape.stages,
            "kBlocksPerSm": shape.blocks_per_sm,
            **({"kHasRope": True} if has_rope else {}),
        },
        params=(AttentionParams, RopeTurns) if has_rope else (AttentionParams,),
        expect_sass=("HMMA.16816", "LDSM", "LDGSTS", *(("MUFU.SIN", "MUFU.COS") if has_rope else ())),
    )
