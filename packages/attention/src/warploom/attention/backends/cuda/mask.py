"""Packing of masks by the kernel of `mask.cuh`."""

from __future__ import annotations

import functools
import math

import torch

from warploom.attention.problems.mask import PackProblem
from warploom.core.backends import Backend, Support
from warploom.core.jit import KernelSpec, ParamStruct, cpp_type, i32, i64, ptr

__all__ = ["CudaPackbits", "packbits_spec"]

_THREADS = 256


class PackbitsParams(ParamStruct):
    cpp_name = "warploom::attention::PackbitsParams"
    x: ptr
    out: ptr
    indptr: ptr
    packed_indptr: ptr
    num_flags: i64
    num_bytes: i64
    x_stride: i64
    out_stride: i64
    batch: i32
    big: i32


@functools.cache
def packbits_spec(index_dtype: torch.dtype) -> KernelSpec:
    """The kernel for offsets of this type."""
    return KernelSpec(
        family="attention",
        header="warploom/attention/mask.cuh",
        kernel="warploom::attention::packbits_kernel",
        config={"Index": cpp_type(index_dtype), "kThreads": _THREADS},
        params=(PackbitsParams,),
    )


class CudaPackbits(Backend):
    name = "cuda"
    needs_gpu = True
    min_arch = 80

    def supports(self, problem: PackProblem) -> Support:
        return Support()

    def run(
        self,
        problem: PackProblem,
        packed: torch.Tensor,
        x: torch.Tensor,
        indptr: torch.Tensor | None,
        packed_indptr: torch.Tensor | None,
    ) -> None:
        flags = x if x.dtype in (torch.bool, torch.uint8) else x != 0
        starts = None if indptr is None else indptr.contiguous()
        params = PackbitsParams(
            x=flags,
            out=packed,
            indptr=starts,
            packed_indptr=packed_indptr,
            num_flags=x.shape[0],
            num_bytes=packed.shape[0],
            x_stride=flags.stride(0),
            out_stride=packed.stride(0),
            batch=0 if starts is None else starts.shape[0] - 1,
            big=problem.bitorder == "big",
        )
        spec = packbits_spec(torch.int32 if starts is None else starts.dtype)
        spec.load(x.device).launch(math.ceil(packed.shape[0] / _THREADS), _THREADS, params)
