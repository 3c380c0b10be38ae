"""Launch of the kernel of `topk.cuh`."""

from __future__ import annotations

import functools

import torch

from warploom.core.backends import Backend, Support
from warploom.core.device import sm_count
from warploom.core.jit import KernelSpec, ParamStruct, cpp_type, i32, i64, ptr
from warploom.sampling.backends.cuda.rows import (
    CANDIDATE_BYTES,
    ROW_THREADS,
    RowShape,
    largest_shared_bytes,
    launch_rows,
    selection_blocks,
    selection_shape,
    vocab_fits,
)
from warploom.sampling.problems.topk import TopKProblem

__all__ = ["CudaTopK", "topk_spec"]

_LARGEST_K = 2048
_FEW_K = 256  # whose candidates fit: 512, `CandidateStorage::kCapacity`
_KEY_COUNT = 4096  # of more tokens, so that ties find room


class TopKParams(ParamStruct):
    cpp_name = "warploom::sampling::TopKParams"
    source: ptr
    values: ptr
    indices: ptr
    source_stride: i64
    token_stride: i64
    values_stride: i64
    value_stride: i64
    indices_stride: i64
    index_stride: i64
    vocab: i32
    k: i32
    key_bytes: i32
    key_count: i32


@functools.cache
def topk_spec(dtype: torch.dtype, resident: bool) -> KernelSpec:
    """The kernel for values of `dtype`, which keeps rows on chip or reads them several times."""
    return KernelSpec(
        family="sampling",
        header="warploom/sampling/topk.cuh",
        kernel="warploom::sampling::topk_kernel",
        config={
            "In": cpp_type(dtype),
            "kResident": resident,
            "kThreads": ROW_THREADS,
            "kBlocksPerSm": selection_blocks(dtype.itemsize, resident),
        },
        params=(TopKParams,),
    )


class CudaTopK(Backend):
    """One read of the row; always ordered, equal values in order of their indices."""

    name = "cuda"
    needs_gpu = True
    min_arch = 80

    def supports(self, problem: TopKProblem) -> Support:
        return Support.of(
            vocab_fits(problem.vocab),
            (problem.k <= _LARGEST_K, f"k {problem.k} is over {_LARGEST_K}"),
        )

    def run(self, problem: TopKProblem, values: torch.Tensor, indices: torch.Tensor, source: torch.Tensor) -> None:
        """Write `values` and `indices` (int64), ``[batch, k]``."""
        sms = sm_count(source.device)
        shape = selection_shape(problem.batch, problem.vocab, source.element_size(), problem.arch, sms)
        few = problem.k <= _FEW_K
        key_bytes = 0 if few else 8 * _KEY_COUNT
        if shape.share_bytes + key_bytes > largest_shared_bytes(problem.arch):
            shape = RowShape(shape.parts, False, 0)
        params = TopKParams(
            source=source,
            values=values,
            indices=indices,
            source_stride=source.stride(0),
            token_stride=source.stride(1),
            values_stride=values.stride(0),
            value_stride=values.stride(1),
            indices_stride=indices.stride(0),
            index_stride=indices.stride(1),
            vocab=problem.vocab,
            k=problem.k,
            key_bytes=shape.share_bytes,
            key_count=0 if few else _KEY_COUNT,
        )
        spec = topk_spec(problem.dtype, shape.resident)
        smem = max(shape.share_bytes + key_bytes, CANDIDATE_BYTES)
        launch_rows(spec, params, source.device, rows=problem.batch, parts=shape.parts, smem=smem)
