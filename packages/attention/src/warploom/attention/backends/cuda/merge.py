"""Launch of the kernels of `merge.cuh`."""

from __future__ import annotations

import functools
import math
from typing import Annotated

import torch

from warploom.attention.backends.cuda.alignment import MAX_BYTES, vector_width
from warploom.attention.problems.merge import MergeProblem
from warploom.core.backends import Backend, Support
from warploom.core.jit import KernelSpec, ParamStruct, cpp_type, f32, i32, i64, ptr, u32

_HEADER = "warploom/attention/merge.cuh"
_UNROLL = 4  # states that a thread has in flight: 64 bytes, as much as latency and bandwidth of HBM ask for
_STATES_PER_GROUP = 2 * _UNROLL  # fewer are not worth the exchange through shared memory
_MAX_THREADS = 512  # of merge_states; leaves 128 registers a thread
_MAX_HEAD_DIM = 1024  # threads of a block, if each takes one component
_MAX_GROUPS = 64  # blockDim.z
_BLOCK_THREADS = 256
_TO_LOG2 = {"log2": 1.0, "e": 1.0 / math.log(2.0)}


class MergeStatesParams(ParamStruct):
    cpp_name = "warploom::attention::MergeStatesParams"
    v: ptr
    s: ptr
    out: ptr
    out_s: ptr
    v_stride: Annotated[i64, 3]
    s_stride: Annotated[i64, 3]
    out_stride: Annotated[i64, 2]
    out_s_stride: Annotated[i64, 2]
    row_heads: u32
    heads: u32
    num_states: i32
    head_vectors: i32
    to_log2: f32
    from_log2: f32


class MergeStateParams(ParamStruct):
    cpp_name = "warploom::attention::MergeStateParams"
    v: Annotated[ptr, 2]
    s: Annotated[ptr, 2]
    out: ptr
    out_s: ptr
    mask: ptr
    v_stride: Annotated[i64, 4]
    s_stride: Annotated[i64, 4]
    out_stride: Annotated[i64, 2]
    out_s_stride: Annotated[i64, 2]
    mask_stride: i64
    row_heads: u32
    heads: u32
    to_log2: f32
    from_log2: f32


def _spec(
    kernel: str,
    params: type[ParamStruct],
    input_dtype: torch.dtype,
    output_dtype: torch.dtype,
    vector: int,
    **limits: int,
) -> KernelSpec:
    return KernelSpec(
        family="attention",
        header=_HEADER,
        kernel=f"warploom::attention::{kernel}",
        config={"In": cpp_type(input_dtype), "Out": cpp_type(output_dtype), "kVec": vector, **limits},
        params=(params,),
        expect_sass=("LDG.E.EF.128",) if vector * input_dtype.itemsize == MAX_BYTES else (),
    )


@functools.cache
def merge_states_spec(input_dtype: torch.dtype, output_dtype: torch.dtype, vector: int) -> KernelSpec:
    limits = {"kUnroll": _UNROLL, "kMaxThreads": _MAX_THREADS}
    return _spec("merge_states_kernel", MergeStatesParams, input_dtype, output_dtype, vector, **limits)


@functools.cache
def merge_state_spec(input_dtype: torch.dtype, output_dtype: torch.dtype, vector: int) -> KernelSpec:
    return _spec("merge_state_kernel", MergeStateParams, input_dtype, output_dtype, vector, kMaxThreads=_MAX_HEAD_DIM)


def merge_states_shape(
    row_heads: int, num_states: int, head_vectors: int
) -> tuple[tuple[int, int], tuple[int, int, int]]:
    """Grid and block: lanes of a head, heads of a block, and groups that share the states of a head.

    The number of groups sets the order of summation. It follows from the states alone, never from how many rows there
    are, so that a row's result does not depend on the batch around it.
    """
    lanes = min(head_vectors, _BLOCK_THREADS)
    most = min(_MAX_GROUPS, _MAX_THREADS // lanes, math.ceil(num_states / _STATES_PER_GROUP))
    groups = 1 << (max(1, most).bit_length() - 1)
    heads = max(1, min(row_heads, _BLOCK_THREADS // (lanes * groups)))
    return (math.ceil(row_heads / heads), math.ceil(head_vectors / lanes)), (lanes, heads, groups)


def _supports(problem: MergeProblem) -> Support:
    return Support.of(
        (problem.unit_strides, "needs the last dimension of inputs and outputs to be contiguous"),
        (problem.head_dim <= _MAX_HEAD_DIM, f"head_dim {problem.head_dim} is over {_MAX_HEAD_DIM}"),
    )


class CudaMergeState(Backend):
    name = "cuda"
    needs_gpu = True
    min_arch = 80

    def supports(self, problem: MergeProblem) -> Support:
        return _supports(problem)

    def run(
        self,
        problem: MergeProblem,
        out: torch.Tensor,
        lse: torch.Tensor,
        v_a: torch.Tensor,
        s_a: torch.Tensor,
        v_b: torch.Tensor,
        s_b: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> None:
        rows, heads, dim = out.shape
        if out.numel() == 0:
            return
        vector = vector_width(out, v_a, v_b)
        to_log2 = _TO_LOG2[problem.lse_base]
        params = MergeStateParams(
            v=(v_a, v_b),
            s=(s_a, s_b),
            out=out,
            out_s=lse,
            mask=mask,
            v_stride=v_a.stride()[:2] + v_b.stride()[:2],
            s_stride=s_a.stride() + s_b.stride(),
            out_stride=out.stride()[:2],
            out_s_stride=lse.stride(),
            mask_stride=0 if mask is None else mask.stride(0),
            row_heads=rows * heads,
            heads=heads,
            to_log2=to_log2,
            from_log2=1.0 / to_log2,
        )
        lanes = dim // vector
        block_heads = max(1, min(rows * heads, _BLOCK_THREADS // lanes))
        kernel = merge_state_spec(problem.input_dtype, problem.output_dtype, vector).load(out.device)
        kernel.launch(math.ceil(rows * heads / block_heads), (lanes, block_heads), params)


class CudaMergeStates(Backend):
    name = "cuda"
    needs_gpu = True
    min_arch = 80

    def supports(self, problem: MergeProblem) -> Support:
        return _supports(problem)

    def run(
        self, problem: MergeProblem, out: torch.Tensor, lse: torch.Tensor, v: torch.Tensor, s: torch.Tensor
    ) -> None:
        rows, states, heads, dim = v.shape
        if out.numel() == 0:
            return
        vector = vector_width(out, v)
        to_log2 = _TO_LOG2[problem.lse_base]
        params = MergeStatesParams(
            v=v,
            s=s,
            out=out,
            out_s=lse,
            v_stride=v.stride()[:3],
            s_stride=s.stride(),
            out_stride=out.stride()[:2],
            out_s_stride=lse.stride(),
            row_heads=rows * heads,
            heads=heads,
            num_states=states,
            head_vectors=dim // vector,
            to_log2=to_log2,
            from_log2=1.0 / to_log2,
        )
        grid, block = merge_states_shape(rows * heads, states, dim // vector)
        smem = math.prod(block) // 2 * (2 + vector) * 4 if block[2] > 1 else 0
        kernel = merge_states_spec(problem.input_dtype, problem.output_dtype, vector).load(out.device)
        kernel.launch(grid, block, params, smem=smem)
