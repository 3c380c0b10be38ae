"""Rotation and append in one pass, by the kernel of `rope_append.cuh`."""

from __future__ import annotations

import functools

import torch

from warploom.attention.backends.cuda.alignment import vector_width
from warploom.attention.backends.cuda.page import AppendParams, append_params, append_support
from warploom.attention.backends.cuda.rope import (
    MAX_PAIRS,
    ROPE_THREADS,
    RopeParams,
    rope_params,
    rope_support,
    rope_width,
)
from warploom.attention.problems.rope import RopeScaling
from warploom.attention.problems.rope_append import RopeAppendProblem
from warploom.core.backends import Backend, Support
from warploom.core.jit import KernelSpec, cpp_type

__all__ = ["CudaRopeAppend", "rope_append_spec"]


@functools.cache
def rope_append_spec(
    dtype: torch.dtype, cache_dtype: torch.dtype, interleave: bool, width: int, vector: int
) -> KernelSpec:
    """The kernel for these types; accesses to queries and keys have `width` components, those to values `vector`."""
    return KernelSpec(
        family="attention",
        header="warploom/attention/rope_append.cuh",
        kernel="warploom::attention::rope_append_kernel",
        config={
            "T": cpp_type(dtype),
            "Cache": cpp_type(cache_dtype),
            "Table": "float",
            "kInterleave": interleave,
            "kWidth": width,
            "kVec": vector,
            "kThreads": ROPE_THREADS,
            "kMaxPairs": MAX_PAIRS,
        },
        params=(RopeParams, AppendParams),
    )


class CudaRopeAppend(Backend):
    name = "cuda"
    needs_gpu = True
    min_arch = 80

    def supports(self, problem: RopeAppendProblem) -> Support:
        return rope_support(problem.rope) & append_support(problem.append)

    def run(
        self,
        problem: RopeAppendProblem,
        scaling: RopeScaling,
        q_out: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        batch_indices: torch.Tensor,
        positions: torch.Tensor,
        kv_indices: torch.Tensor,
        kv_indptr: torch.Tensor,
    ) -> None:
        width, vector = rope_width(problem.rope, q_out, q, k, k_cache), vector_width(v, v_cache)
        spec = rope_append_spec(problem.dtype, problem.cache_dtype, problem.interleave, width, vector)
        table = batch_indices, positions, kv_indices, kv_indptr
        rope = rope_params(problem.rope, (q_out, None), (q, k), scaling, width)
        # Keys are written as the rotation gives them, so that the vectors of the append are those of values.
        append = append_params((k, v), (k_cache, v_cache), table, vector)
        spec.load(q.device).launch(q.shape[0], ROPE_THREADS, rope, append)
