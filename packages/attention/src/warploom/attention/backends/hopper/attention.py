"""Attention of long queries on Hopper by the kernel of `attention_hopper.cuh`."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import torch

from warploom.attention.backends.cuda.attention_kernel import AttentionParams, KernelShape, common_config
from warploom.attention.backends.cuda.persistent_attention import PersistentAttention
from warploom.attention.backends.cuda.schedule import TileSizes
from warploom.attention.backends.cuda.variant_source import VariantSource
from warploom.attention.plan import AttentionPlan
from warploom.attention.problems.attention import AttentionProblem
from warploom.core.backends import Support
from warploom.core.descriptors import TensorMap, TensorView, tensor_map
from warploom.core.jit import KernelSpec

__all__ = ["HopperAttention", "hopper_spec"]

_ROWS = 128  # of a query tile
_GROUP_ROWS = 64  # of a warpgroup
_TILE_KEYS = 128
_SHARED_BYTES = 200 * 1024  # of a block, beside its static part
_MOST_STAGES = 3
_BOX_COLUMNS = 64  # the span of TMA's exchange of pieces, which repeats after so many rows:
_SWIZZLED_ROWS = 8
_NO_MAP = TensorMap(bytes(128))
_HEAD_DIMS = (64, 128)


@functools.lru_cache(256)
def hopper_spec(
    dtype: torch.dtype, dtype_o: torch.dtype, head_dim: int, stages: int, box_rows: int, variant: VariantSource
) -> KernelSpec:
    """The kernel for these types, with the variants compiled in; TMA copies so many rows at once, or none."""
    return KernelSpec(
        family="attention",
        header="warploom/attention/attention_hopper.cuh",
        kernel="warploom::attention::attention_hopper_kernel",
        prelude=variant.prelude,
        config={
            **common_config((dtype, dtype, dtype_o), (head_dim, head_dim), variant),
            "kStages": stages,
            "kBoxRows": box_rows,
        },
        params=(AttentionParams, *["warploom::TensorMap"] * 3),
        archs=("sm_90a",),
        expect_sass=("HGMMA", "USETMAXREG", "LDGSTS", *(("UTMALDG",) if box_rows else ())),
    )


class HopperAttention(PersistentAttention):
    """Tensor cores through wgmma, with a warpgroup that copies keys and values."""

    name = "hopper"
    needs_gpu = True
    min_arch = 90
    threads = 384
    query_alignment = 16
    output_columns = 8

    def supports(self, problem: AttentionProblem) -> Support:
        dims = problem.head_dim_qk, problem.head_dim_vo
        return Support.of(
            (problem.arch == 90, f"wgmma is an instruction of sm_90a, not of sm_{problem.arch}"),
            (problem.dtype_kv == problem.dtype_q, f"keys and values must be {problem.dtype_q}, not {problem.dtype_kv}"),
            (dims in [(dim, dim) for dim in _HEAD_DIMS], f"takes heads of {_HEAD_DIMS}, not {dims}"),
            *self.common_conditions(problem),
            (problem.pos_encoding != "ROPE_LLAMA", "does not rotate queries and keys on the fly"),
            (problem.phase != "decode", "its tiles of 128 query rows would be empty"),
        )

    def has_wide_tiles(self, problem: AttentionProblem, longest: int | None) -> bool:
        return True

    def kernel_shape(self, problem: AttentionProblem, has_wide: bool) -> KernelShape:
        queries = 2 * _ROWS * problem.head_dim_qk * 2  # of the item that is worked on, and the next
        stage = _TILE_KEYS * (problem.head_dim_qk + problem.head_dim_vo) * 2
        stages = min((_SHARED_BYTES - queries) // stage, _MOST_STAGES)
        return KernelShape(1, stages, queries + stages * stage + 1024)

    def tile_sizes(self, problem: AttentionProblem, has_wide: bool) -> TileSizes:
        return TileSizes(_ROWS, _ROWS, _TILE_KEYS)

    def kernel_spec(
        self, problem: AttentionProblem, has_wide: bool, shape: KernelShape, source: VariantSource
    ) -> KernelSpec:
        dtypes, rows = (problem.dtype_q, problem.dtype_o), box_rows(problem.page_size)
        return hopper_spec(*dtypes, problem.head_dim_qk, shape.stages, rows, source)

    def more_arguments(self, plan: AttentionPlan, q: TensorView, k: TensorView, v: TensorView) -> tuple[TensorMap, ...]:
        rows = box_rows(plan.problem.page_size)
        return _query_map(q, plan.problem.group_size), _map(k, rows), _map(v, rows)


def box_rows(page_size: int) -> int:
    """Rows of keys that TMA copies at once, all of one page; 0 where pages are too small. Without pages: a tile of keys.

    Examples
    --------
    >>> [box_rows(page_size) for page_size in (0, 1, 16, 24, 256)]
    [128, 0, 16, 8, 128]
    """
    rows = math.gcd(page_size, _TILE_KEYS)
    return rows if rows >= _SWIZZLED_ROWS else 0


def _query_map(q: TensorView, group_size: int) -> TensorMap:
    """Queries ``[tokens, heads, dim]``; a box has all heads of a group, of as many tokens as a warpgroup has rows for."""
    if _GROUP_ROWS % group_size:
        return _NO_MAP
    tokens, heads, dim = q.shape
    token, head, element = q.strides
    by_group = replace(
        q, shape=(tokens, heads // group_size, group_size, dim), strides=(token, group_size * head, head, element)
    )
    return tensor_map(by_group, (_GROUP_ROWS // group_size, 1, group_size, _BOX_COLUMNS))


def _map(rows: TensorView, box_rows: int) -> TensorMap:
    """Rows of keys or values, of shape ``[pages, page_size, heads, dim]`` or ``[rows, heads, dim]``, head by head."""
    if not box_rows or 0 in rows.shape:
        return _NO_MAP
    *pages, page_size, heads, dim = rows.shape
    *page, row, head, element = rows.strides
    by_head = replace(
        rows, shape=(*(pages or [1]), heads, page_size, dim), strides=(*(page or [0]), head, row, element)
    )
    return tensor_map(by_head, (1, 1, box_rows, _BOX_COLUMNS))
