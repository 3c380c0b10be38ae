"""RoPE by the kernel of `rope.cuh`."""

from __future__ import annotations

import functools
import math
from typing import Annotated

import torch

from warploom.attention.backends.cuda.alignment import vector_width
from warploom.attention.problems.rope import RopeProblem, RopeScaling
from warploom.core.backends import Backend, Support
from warploom.core.jit import Divisor, KernelSpec, ParamStruct, cpp_type, divisor_fields, f64, i32, i64, ptr

__all__ = [
    "MAX_PAIRS",
    "ROPE_THREADS",
    "CudaCosSinCache",
    "CudaRope",
    "RopeParams",
    "rope_params",
    "rope_spec",
    "rope_support",
    "rope_width",
]

ROPE_THREADS = 128
MAX_PAIRS = 512


class RopeParams(ParamStruct):
    cpp_name = "warploom::attention::RopeParams"
    x: Annotated[ptr, 2]
    out: Annotated[ptr, 2]
    positions: ptr
    indptr: ptr
    offsets: ptr
    cache: ptr
    x_stride: Annotated[i64, 4]
    out_stride: Annotated[i64, 4]
    cache_stride: i64
    minus_log_theta: f64
    scale: f64
    low_freq_factor: f64
    high_freq_factor: f64
    accesses: Divisor
    heads: Annotated[i32, 2]
    pairs: i32
    batch: i32
    old_context_len: i32


@functools.cache
def rope_spec(
    dtype: torch.dtype, index_dtype: torch.dtype, table_dtype: torch.dtype, interleave: bool, width: int
) -> KernelSpec:
    """The kernel for these types; `width` components are one access."""
    return KernelSpec(
        family="attention",
        header="warploom/attention/rope.cuh",
        kernel="warploom::attention::rope_kernel",
        config={
            "T": cpp_type(dtype),
            "Index": cpp_type(index_dtype),
            "Table": cpp_type(table_dtype),
            "kInterleave": interleave,
            "kWidth": width,
            "kThreads": ROPE_THREADS,
            "kMaxPairs": MAX_PAIRS,
        },
        params=(RopeParams,),
    )


def rope_width(problem: RopeProblem, *tensors: torch.Tensor) -> int:
    """Components of an access: 16 bytes of them where tensors and the rotated part allow it, else 1."""
    width = vector_width(*tensors)
    parts = (
        problem.rotary_dim if problem.interleave else problem.rotary_dim // 2,
        problem.head_dim - problem.rotary_dim,
    )
    return width if all(part % width == 0 for part in parts) else 1


def rope_support(problem: RopeProblem) -> Support:
    """What the kernels of `rope.cuh` refuse."""
    return Support.of(
        (problem.unit_strides, "needs the last dimension of inputs and outputs to be contiguous"),
        (problem.rotary_dim <= 2 * MAX_PAIRS, f"rotary_dim {problem.rotary_dim} is over {2 * MAX_PAIRS}"),
    )


def rope_params(
    problem: RopeProblem,
    out: tuple[torch.Tensor | None, torch.Tensor | None],
    x: tuple[torch.Tensor, torch.Tensor],
    scaling: RopeScaling,
    width: int,
    *,
    in_place: bool = False,
    positions: torch.Tensor | None = None,
    indptr: torch.Tensor | None = None,
    offsets: torch.Tensor | None = None,
    cache: torch.Tensor | None = None,
) -> RopeParams:
    """Queries and keys ``[nnz, heads, head_dim]`` and where they go, None: the kernel knows; so it is with positions.

    In place, components that stay are left alone.
    """
    pairs_at_once = width // 2 if problem.interleave and width > 1 else width
    turning, rest = problem.rotary_dim // 2 // pairs_at_once, (problem.head_dim - problem.rotary_dim) // width
    return RopeParams(
        x=x, out=out, positions=positions, indptr=indptr, offsets=offsets, cache=cache,
        x_stride=[step for t in x for step in t.stride()[:2]],
        out_stride=[step for t in out for step in ((0, 0) if t is None else t.stride()[:2])],
        cache_stride=0 if cache is None else cache.stride(0), minus_log_theta=-math.log(scaling.rope_theta),
        scale=scaling.rope_scale, low_freq_factor=scaling.low_freq_factor, high_freq_factor=scaling.high_freq_factor,
        accesses=divisor_fields(turning if in_place else turning + rest), heads=[t.shape[1] for t in x],
        pairs=problem.rotary_dim // 2, batch=0 if indptr is None else indptr.shape[0] - 1,
        old_context_len=scaling.old_context_len,
    )  # fmt: skip


def _launch(
    problem: RopeProblem,
    out: tuple[torch.Tensor, torch.Tensor],
    x: tuple[torch.Tensor, torch.Tensor],
    scaling: RopeScaling,
    *,
    positions: torch.Tensor | None = None,
    indptr: torch.Tensor | None = None,
    offsets: torch.Tensor | None = None,
    cache: torch.Tensor | None = None,
) -> None:
    width = rope_width(problem, *out, *x)
    in_place = all(a.data_ptr() == b.data_ptr() for a, b in zip(out, x, strict=True))
    places = positions if positions is not None else indptr
    assert places is not None
    offsets = None if offsets is None else offsets.to(places.dtype)
    params = rope_params(
        problem, out, x, scaling, width,
        in_place=in_place, positions=positions, indptr=indptr, offsets=offsets, cache=cache,
    )  # fmt: skip
    table = torch.float32 if cache is None else cache.dtype
    spec = rope_spec(problem.dtype, places.dtype, table, problem.interleave, width)
    spec.load(x[0].device).launch(x[0].shape[0], ROPE_THREADS, params)


class CudaRope(Backend):
    name = "cuda"
    needs_gpu = True
    min_arch = 80

    def supports(self, problem: RopeProblem) -> Support:
        return rope_support(problem)

    def run(
        self,
        problem: RopeProblem,
        scaling: RopeScaling,
        q_out: torch.Tensor,
        k_out: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        places: torch.Tensor | tuple[torch.Tensor, torch.Tensor],
    ) -> None:
        if isinstance(places, torch.Tensor):
            _launch(problem, (q_out, k_out), (q, k), scaling, positions=places.contiguous())
        else:
            indptr, offsets = (x.contiguous() for x in places)
            _launch(problem, (q_out, k_out), (q, k), scaling, indptr=indptr, offsets=offsets)


class CudaCosSinCache(Backend):
    name = "cuda"
    needs_gpu = True
    min_arch = 80

    def supports(self, problem: RopeProblem) -> Support:
        return rope_support(problem)

    def run(
        self,
        problem: RopeProblem,
        q_out: torch.Tensor,
        k_out: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        positions: torch.Tensor,
        cos_sin_cache: torch.Tensor,
    ) -> None:
        table = cos_sin_cache if cos_sin_cache.stride(-1) == 1 else cos_sin_cache.contiguous()
        scaling = RopeScaling(1.0, 1.0)  # not used
        _launch(problem, (q_out, k_out), (q, k), scaling, positions=positions.contiguous(), cache=table)
