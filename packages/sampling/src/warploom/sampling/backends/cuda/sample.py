"""Launch of the drawing kernels, `draw_plain.cuh` and `draw_filtered.cuh`."""

from __future__ import annotations

import functools

import torch

from warploom.core.backends import Backend, Support
from warploom.core.device import sm_count
from warploom.core.jit import KernelSpec, cpp_type
from warploom.sampling.backends.cuda.draw import DrawParams, draw_params, filter_bits
from warploom.sampling.backends.cuda.rows import (
    CANDIDATE_BYTES,
    SHARE_THREADS,
    STREAM_THREADS,
    RowShape,
    row_shape,
    selection_shape,
    stream_parts,
)
from warploom.sampling.parameters import FilterParameters
from warploom.sampling.problems.sample import SampleProblem
from warploom.sampling.randomness import RandomState
from warploom.sampling.steps import SOFTMAX

__all__ = ["CudaSample", "filtered_spec", "plain_spec"]


@functools.cache
def plain_spec(dtype: torch.dtype, from_logits: bool) -> KernelSpec:
    """The kernel that draws from the whole distribution."""
    return KernelSpec(
        family="sampling",
        header="warploom/sampling/draw_plain.cuh",
        kernel="warploom::sampling::draw_plain_kernel",
        config={"In": cpp_type(dtype), "kFromLogits": from_logits, "kThreads": STREAM_THREADS, "kBlocksPerSm": 4},
        params=(DrawParams,),
    )


@functools.cache
def filtered_spec(dtype: torch.dtype, from_logits: bool, top_k: bool, resident: bool) -> KernelSpec:
    """The kernel that draws from what filters keep; with or without top-k among them."""
    return KernelSpec(
        family="sampling",
        header="warploom/sampling/draw_filtered.cuh",
        kernel="warploom::sampling::draw_filtered_kernel",
        config={
            "In": cpp_type(dtype),
            "kFromLogits": from_logits,
            "kTopK": top_k,
            "kResident": resident,
            "kThreads": SHARE_THREADS,
            "kBlocksPerSm": 3 if resident else 4,
        },
        params=(DrawParams,),
    )


def _filtered_shape(problem: SampleProblem, itemsize: int, sms: int) -> RowShape:
    """Top-p looks at a row several times, unless top-k leaves few tokens of it. Tokens do not depend on the shape."""
    if "top_p" in problem.steps and "top_k" not in problem.steps:
        return row_shape(problem.vocab, itemsize, problem.arch)
    return selection_shape(problem.batch, problem.vocab, itemsize, problem.arch, sms)


class CudaSample(Backend):
    """One read of the row."""

    name = "cuda"
    needs_gpu = True
    min_arch = 80

    def supports(self, problem: SampleProblem) -> Support:
        return Support.of((problem.vocab <= 2**20, f"vocab {problem.vocab} is over 2**20"))

    def run(
        self,
        problem: SampleProblem,
        tokens: torch.Tensor,
        valid: torch.Tensor,
        source: torch.Tensor,
        indices: torch.Tensor | None,
        parameters: FilterParameters,
        random: RandomState,
    ) -> None:
        """Draw `tokens` ``[batch]`` (int32) with `valid` ``[batch]`` (bool) and advance the offset."""
        filters = filter_bits(problem.steps)
        params = draw_params(tokens, valid, source, indices, parameters, random, filters=filters)
        from_logits = SOFTMAX in problem.steps
        itemsize = source.element_size()
        if filters:
            shape = _filtered_shape(problem, itemsize, sm_count(source.device))
            spec = filtered_spec(problem.dtype, from_logits, "top_k" in problem.steps, shape.resident)
            parts, threads, smem = shape.parts, SHARE_THREADS, max(shape.share_bytes, CANDIDATE_BYTES)
        else:
            spec = plain_spec(problem.dtype, from_logits)
            parts = stream_parts(problem.batch, problem.vocab, itemsize, problem.arch, sm_count(source.device))
            threads, smem = STREAM_THREADS, 0
        kernel = spec.load(source.device)
        kernel.launch(problem.batch * parts, threads, params, smem=smem, cluster=parts if parts > 1 else None)
        random.advance()
