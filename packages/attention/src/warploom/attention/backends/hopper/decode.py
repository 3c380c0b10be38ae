"""Attention of requests with few query rows on Hopper by the kernel of `attention_decode.cuh`."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from warploom.attention.backends.cuda.attention_kernel import NARROW_ROWS, AttentionParams, KernelShape, common_config
from warploom.attention.backends.cuda.persistent_attention import PersistentAttention
from warploom.attention.backends.cuda.schedule import TileSizes
from warploom.attention.backends.cuda.variant_source import VariantSource
from warploom.attention.backends.hopper.boxes import SPAN, box_rows, key_value_map
from warploom.attention.plan import AttentionPlan
from warploom.attention.problems.attention import AttentionProblem
from warploom.attention.tables import RequestTables
from warploom.core.backends import Support
from warploom.core.descriptors import TensorMap, TensorView
from warploom.core.jit import KernelSpec

__all__ = ["DecodeTiles", "HopperDecode", "decode_spec", "decode_tiles"]

_KEYS = 16  # of a tile, that a warp takes: those of a product; of 8 bits twice as many, or what a tile takes counts for more
_REGISTER_DIM = 128  # of heads up to which threads need no more than 168 registers
_SHARED_BYTES = 200 * 1024  # of an SM, beside the static part
_MOST_STAGES = 6


class DecodeTiles(NamedTuple):
    """Of a block: warps that compute, keys of a tile; stages of so many keys and values; blocks an SM."""

    warps: int
    keys: int
    stages: int
    blocks_per_sm: int
    smem: int


@functools.cache
def decode_tiles(head_dim: int, value_dim: int, itemsize: int, is_wide: bool) -> DecodeTiles:
    """Of the kernel for these heads; `is_wide`: one block an SM, with larger tiles.

    Examples
    --------
    >>> decode_tiles(128, 128, 2, is_wide=True)
    DecodeTiles(warps=8, keys=128, stages=3, blocks_per_sm=1, smem=197632)
    >>> decode_tiles(128, 128, 2, is_wide=False)
    DecodeTiles(warps=4, keys=64, stages=3, blocks_per_sm=2, smem=99328)
    """
    of_key = sum(-(-dim * itemsize // SPAN) * SPAN for dim in (head_dim, value_dim))
    is_small = max(head_dim, value_dim) <= _REGISTER_DIM
    warps, blocks = (8, 1) if is_wide and is_small else (4, 2 if is_small else 1)
    keys = _KEYS * warps * (2 if itemsize == 1 and is_small and not is_wide else 1)
    stage = keys * of_key
    stages = min(_SHARED_BYTES // blocks // stage, _MOST_STAGES)
    return DecodeTiles(warps, keys, stages, blocks, stages * stage + 1024)


@functools.lru_cache(256)
def decode_spec(
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype],
    dims: tuple[int, int],
    is_wide: bool,
    page_size: int,
    variant: VariantSource,
) -> KernelSpec:
    """The kernel for types of queries, of keys and values, and of outputs, with the variants compiled in."""
    tiles = decode_tiles(*dims, dtypes[1].itemsize, is_wide)
    return KernelSpec(
        family="attention",
        header=f"warploom/attention/attention_decode{'_fp8' if dtypes[1].itemsize == 1 else ''}.cuh",
        kernel="warploom::attention::attention_decode_kernel",
        prelude=variant.prelude,
        config={
            **common_config(dtypes, dims, variant),
            "kWarps": tiles.warps,
            "kTileKeys": tiles.keys,
            "kStages": tiles.stages,
            "kBlocksPerSm": tiles.blocks_per_sm,
            "kBoxRows": _rows_at_once(page_size, tiles),
        },
        params=(AttentionParams, *["warploom::TensorMap"] * 2),
        archs=("sm_90a",),
        expect_sass=("HMMA.16816", "LDSM", "UTMALDG"),
    )


class HopperDecode(PersistentAttention):
    """Keys and values by TMA for requests of up to 16 query rows, a token of each of a group's heads for example."""

    name = "hopper_decode"
    needs_gpu = True
    min_arch = 90
    takes_fp8_caches = True
    query_alignment = 4
    output_columns = 4

    def supports(self, problem: AttentionProblem) -> Support:
        dims = problem.head_dim_qk, problem.head_dim_vo
        return Support.of(
            (problem.arch == 90, f"its barriers and copies are those of sm_90, not of sm_{problem.arch}"),
            (problem.few_rows, f"takes requests that are known to have at most {NARROW_ROWS} rows of queries"),
            (all(dim % 16 == 0 for dim in dims), f"head dims must be multiples of 16, not {dims}"),
            (problem.page_size % 16 == 0, f"pages must have a multiple of 16 entries, not {problem.page_size}"),
            *self.common_conditions(problem),
            (not problem.has_other_variants, "of the variants it takes causal masks, windows and soft caps"),
        )

    def has_wide_tiles(self, problem: AttentionProblem, tables: RequestTables) -> bool:
        """Of about as many items as SMs: most are a block's alone. Deterministic results do not depend on their number."""
        items = tables.batch * problem.num_kv_heads
        return problem.sm_count // 2 < items <= problem.sm_count and not problem.deterministic

    def kernel_shape(self, problem: AttentionProblem, has_wide: bool) -> KernelShape:
        tiles = _tiles(problem, has_wide)
        return KernelShape(tiles.blocks_per_sm, tiles.stages, tiles.smem)

    def block_threads(self, problem: AttentionProblem, has_wide: bool) -> int:
        return (_tiles(problem, has_wide).warps + 1) * 32

    def tile_sizes(self, problem: AttentionProblem, has_wide: bool) -> TileSizes:
        return TileSizes(NARROW_ROWS, NARROW_ROWS, _tiles(problem, has_wide).keys)

    def kernel_spec(
        self, problem: AttentionProblem, has_wide: bool, shape: KernelShape, source: VariantSource
    ) -> KernelSpec:
        dtypes = problem.dtype_q, problem.dtype_kv, problem.dtype_o
        dims = problem.head_dim_qk, problem.head_dim_vo
        return decode_spec(dtypes, dims, has_wide, problem.page_size, source)

    def more_arguments(
        self, plan: AttentionPlan, q: TensorView, k: TensorView, v: TensorView, out: TensorView
    ) -> tuple[TensorMap, ...]:
        rows = _rows_at_once(plan.problem.page_size, _tiles(plan.problem, plan.schedule.launch.has_wide))
        return key_value_map(k, rows, whole_rows=True), key_value_map(v, rows, whole_rows=True)


def _tiles(problem: AttentionProblem, is_wide: bool) -> DecodeTiles:
    return decode_tiles(problem.head_dim_qk, problem.head_dim_vo, problem.dtype_kv.itemsize, is_wide)


def _rows_at_once(page_size: int, tiles: DecodeTiles) -> int:
    return box_rows(page_size, tiles.keys, least=16)
