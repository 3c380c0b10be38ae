"""Attention of long queries on Hopper by the kernel of `attention_hopper.cuh`."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar, NamedTuple

import torch

from warploom.attention.backends.cuda.attention_kernel import NARROW_ROWS, AttentionParams, KernelShape, common_config
from warploom.attention.backends.cuda.persistent_attention import HALF_DTYPES, PersistentAttention
from warploom.attention.backends.cuda.schedule import TileSizes
from warploom.attention.backends.cuda.variant_source import VariantSource
from warploom.attention.backends.hopper.boxes import NO_MAP, SPAN, box_rows, key_value_map
from warploom.attention.plan import AttentionPlan
from warploom.attention.problems.attention import AttentionProblem
from warploom.attention.tables import RequestTables
from warploom.core.backends import Support
from warploom.core.descriptors import TensorMap, TensorView, tensor_map
from warploom.core.jit import KernelSpec

__all__ = ["HopperAttention", "hopper_spec"]

_ROWS = 128  # of a query tile
_GROUP_ROWS = 64  # of a warpgroup
_WARPS = 8  # that compute
_THREADS = 384  # with those that copy
# What a tile of keys takes with few rows of queries and with many, and the rest of an item, as measured in batches of both.
_NARROW_UNITS, _WIDE_UNITS, _ITEM_UNITS = 3, 4, 9
_SHARED_BYTES = 220 * 1024  # of a block, beside its static part
_MOST_STAGES = 3


class HopperTiles(NamedTuple):
    """What of shared memory a block has: items whose queries have room, stages of so many keys and values; and its bytes."""

    keys: int
    items: int
    stages: int
    smem: int


_UNTURNED = 3  # stages of values of 8 bits before they are turned
# Of heads of keys and values: keys of a tile, as many as have registers beside the outputs, and items.
_TILES = {(64, 64): (128, 2), (96, 96): (128, 2), (128, 128): (128, 2), (192, 128): (128, 1), (256, 256): (64, 1)}
_FP8_HEADS = ((64, 64), (128, 128))  # that have 8 bits


@functools.cache
def hopper_tiles(head_dim: int, value_dim: int, itemsize: int = 2) -> HopperTiles:
    """Of the kernel for these heads, of 16 or 8 bits.

    Examples
    --------
    >>> hopper_tiles(128, 128)
    HopperTiles(keys=128, items=2, stages=2, smem=197632)
    >>> hopper_tiles(128, 128, itemsize=1)
    HopperTiles(keys=128, items=2, stages=3, smem=214016)
    """
    keys, items = _TILES[head_dim, value_dim]
    of_row, of_values, of_output = (
        -(-nbytes // SPAN) * SPAN for nbytes in (head_dim * itemsize, value_dim * itemsize, value_dim * 2)
    )
    queries = items * _ROWS * max(of_row, of_output)  # whose place outputs take
    unturned = _UNTURNED * keys * of_values if itemsize == 1 else 0
    stage = keys * of_row + (keys * of_values if itemsize == 2 else value_dim * SPAN)
    stages = min((_SHARED_BYTES - queries - unturned) // stage, _MOST_STAGES)
    return HopperTiles(keys, items, stages, queries + unturned + stages * stage + 1024)


@functools.lru_cache(256)
def hopper_spec(
    dtype: torch.dtype, dtype_o: torch.dtype, head_dim: int, value_dim: int, box_rows: int, variant: VariantSource
) -> KernelSpec:
    """The kernel for these types, with the variants compiled in; TMA copies so many rows at once, or none."""
    tiles = hopper_tiles(head_dim, value_dim, dtype.itemsize)
    return KernelSpec(
        family="attention",
        header=f"warploom/attention/attention_hopper{'_fp8' if dtype.itemsize == 1 else ''}.cuh",
        kernel="warploom::attention::attention_hopper_kernel",
        prelude=variant.prelude,
        config={
            **common_config((dtype, dtype, dtype_o), (head_dim, value_dim), variant),
            "kTileKeys": tiles.keys,
            "kItems": tiles.items,
            "kStages": tiles.stages,
            "kBoxRows": box_rows,
        },
        params=(AttentionParams, *["warploom::TensorMap"] * 4),
        archs=("sm_90a",),
        expect_sass=(
            "QGMMA" if dtype.itemsize == 1 else "HGMMA",
            "USETMAXREG",
            "LDGSTS",
            *(("UTMALDG",) if box_rows else ()),
        ),
    )


class HopperAttention(PersistentAttention):
    """Tensor cores through wgmma, with a warpgroup that copies keys and values."""

    name = "hopper"
    needs_gpu = True
    min_arch = 90
    query_dtypes: ClassVar[tuple[torch.dtype, ...]] = (*HALF_DTYPES, torch.float8_e4m3fn)
    takes_fp8_caches = False
    query_alignment = 16
    output_columns = 8
    head_dims: ClassVar[Iterable[tuple[int, int]]] = _TILES.keys()

    def supports(self, problem: AttentionProblem) -> Support:
        is_fp8 = problem.dtype_q == torch.float8_e4m3fn
        dims, heads = (problem.head_dim_qk, problem.head_dim_vo), list(_FP8_HEADS if is_fp8 else self.head_dims)
        pages_fit = not is_fp8 or dims not in heads or _rows_at_once(problem) > 0
        return Support.of(
            (problem.arch == 90, f"wgmma is an instruction of sm_90a, not of sm_{problem.arch}"),
            (dims in heads, f"takes heads of keys and values of {heads}, not {dims}"),
            (pages_fit, f"pages of fp8 keys must have a multiple of 8 entries, not {problem.page_size}"),
            *self.common_conditions(problem),
            (
                not (is_fp8 and problem.has_other_variants),
                "with fp8 queries takes causal masks, windows and soft caps, no other variants",
            ),
            (problem.phase != "decode", "its tiles of 128 query rows would be empty"),
        )

    def has_wide_tiles(self, problem: AttentionProblem, tables: RequestTables) -> bool:
        return True

    def kernel_shape(self, problem: AttentionProblem, has_wide: bool) -> KernelShape:
        tiles = _tiles(problem)
        return KernelShape(1, tiles.stages, tiles.smem)

    def block_threads(self, problem: AttentionProblem, has_wide: bool) -> int:
        return _THREADS

    def tile_sizes(self, problem: AttentionProblem, has_wide: bool) -> TileSizes:
        keys = _tiles(problem).keys
        # So few rows are no work for wgmma: warps share the keys of a tile, 16 each at least.
        has_few = keys >= _WARPS * 16 and problem.dtype_q.itemsize == 2
        narrow = NARROW_ROWS if has_few else _ROWS
        return TileSizes(narrow, _ROWS, keys, _NARROW_UNITS, _WIDE_UNITS, _ITEM_UNITS)

    def kernel_spec(
        self, problem: AttentionProblem, has_wide: bool, shape: KernelShape, source: VariantSource
    ) -> KernelSpec:
        dims = problem.head_dim_qk, problem.head_dim_vo
        return hopper_spec(problem.dtype_q, problem.dtype_o, *dims, _rows_at_once(problem), source)

    def more_arguments(
        self, plan: AttentionPlan, q: TensorView, k: TensorView, v: TensorView, out: TensorView
    ) -> tuple[TensorMap, ...]:
        rows, group_size = _rows_at_once(plan.problem), plan.problem.group_size
        return _row_map(q, group_size), key_value_map(k, rows), key_value_map(v, rows), _row_map(out, group_size)


def _tiles(problem: AttentionProblem) -> HopperTiles:
    return hopper_tiles(problem.head_dim_qk, problem.head_dim_vo, problem.dtype_q.itemsize)


def _rows_at_once(problem: AttentionProblem) -> int:
    return box_rows(problem.page_size, _tiles(problem).keys)


def _row_map(rows: TensorView, group_size: int) -> TensorMap:
    """Queries or outputs ``[tokens, heads, dim]``; a box has a group's heads, of as many tokens as fill a warpgroup's rows."""
    if _GROUP_ROWS % group_size or rows.dtype.itemsize > 2:
        return NO_MAP
    tokens, heads, dim = rows.shape
    token, head, element = rows.strides
    by_group = replace(
        rows, shape=(tokens, heads // group_size, group_size, dim), strides=(token, group_size * head, head, element)
    )
    return tensor_map(by_group, (_GROUP_ROWS // group_size, 1, group_size, SPAN // rows.dtype.itemsize))
