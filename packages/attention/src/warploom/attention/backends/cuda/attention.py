"""Attention by the kernels of `attention.cuh`: any mix of decodes, appends and prefills in one launch."""

from __future__ import annotations

from typing import Any

from warploom.attention.backends.cuda.attention_kernel import (
    NARROW_ROWS,
    THREADS,
    WIDE_ROWS,
    KernelShape,
    attention_spec,
    kernel_shape,
    tile_keys,
)
from warploom.attention.backends.cuda.persistent_attention import PersistentAttention
from warploom.attention.backends.cuda.rope_turns import rope_turns
from warploom.attention.backends.cuda.schedule import TileSizes
from warploom.attention.backends.cuda.variant_source import VariantSource
from warploom.attention.options import FP8_DTYPES
from warploom.attention.plan import AttentionPlan
from warploom.attention.problems.attention import AttentionProblem
from warploom.attention.tables import RequestTables
from warploom.core.backends import Support
from warploom.core.descriptors import TensorView
from warploom.core.jit import KernelSpec

__all__ = ["CudaAttention"]


class CudaAttention(PersistentAttention):
    """Tensor cores through `mma.sync`, keys and values through `cp.async`: every GPU from sm_80 on."""

    name = "cuda"
    needs_gpu = True
    min_arch = 80
    takes_fp8_caches = True
    rotates = True
    query_alignment = 4
    output_columns = 4

    def supports(self, problem: AttentionProblem) -> Support:
        stages, is_fp8 = self.kernel_shape(problem, False).stages, problem.dtype_kv in FP8_DTYPES
        return Support.of(
            (
                not is_fp8 or (problem.head_dim_qk % 16 == 0 and problem.head_dim_vo % 16 == 0),
                "head dims of fp8 keys and values must be multiples of 16, which is what is copied at once",
            ),
            *self.common_conditions(problem),
            (stages >= 2, f"sm_{problem.arch} has not the shared memory for heads of {problem.head_dim_qk}"),
        )

    def has_wide_tiles(self, problem: AttentionProblem, tables: RequestTables) -> bool:
        # For 16 rows of each warp; rotated queries that registers can't hold have room for one tile of 16.
        has_registers = max(problem.head_dim_vo, problem.head_dim_qk if has_rope(problem) else 0) <= 128
        longest = tables.max_qo_len
        return has_registers and (longest is None or longest * problem.group_size > NARROW_ROWS)

    def kernel_shape(self, problem: AttentionProblem, has_wide: bool) -> KernelShape:
        dims = problem.head_dim_qk, problem.head_dim_vo
        return kernel_shape(*dims, problem.dtype_kv.itemsize, has_wide, problem.arch, has_rope(problem))

    def block_threads(self, problem: AttentionProblem, has_wide: bool) -> int:
        return THREADS

    def tile_sizes(self, problem: AttentionProblem, has_wide: bool) -> TileSizes:
        keys = tile_keys(problem.head_dim_qk, problem.head_dim_vo, problem.dtype_kv.itemsize, has_rope(problem))
        return TileSizes(NARROW_ROWS, WIDE_ROWS if has_wide else NARROW_ROWS, keys)

    def kernel_spec(
        self, problem: AttentionProblem, has_wide: bool, shape: KernelShape, source: VariantSource
    ) -> KernelSpec:
        dtypes = problem.dtype_q, problem.dtype_kv, problem.dtype_o
        dims = problem.head_dim_qk, problem.head_dim_vo
        return attention_spec(*dtypes, *dims, has_wide, shape, source, has_rope(problem))

    def more_arguments(
        self, plan: AttentionPlan, q: TensorView, k: TensorView, v: TensorView, out: TensorView
    ) -> tuple[Any, ...]:
        if not has_rope(plan.problem):
            return ()
        return (rope_turns(plan.problem.head_dim_qk, plan.options.rope_scale, plan.options.rope_theta),)


def has_rope(problem: AttentionProblem) -> bool:
    """Whether queries and keys are rotated on the fly."""
    return problem.pos_encoding == "ROPE_LLAMA"
