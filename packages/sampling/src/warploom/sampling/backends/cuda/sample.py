"""Launch of the drawing kernels: `draw_plain.cuh`, `draw_top_k.cuh`, `draw_top_p.cuh` and `draw_filtered.cuh`."""

from __future__ import annotations

import functools
import math

import torch

from warploom.core.backends import Backend, Support
from warploom.core.device import sm_count
from warploom.core.jit import KernelSpec, cpp_type
from warploom.sampling.backends.cuda.draw import DrawParams, draw_params, filter_bits
from warploom.sampling.backends.cuda.rows import (
    CANDIDATE_BYTES,
    ROW_THREADS,
    STREAM_BYTES,
    launch_rows,
    row_shape,
    selection_blocks,
    selection_shape,
    stream_parts,
    stream_threads,
    vocab_fits,
)
from warploom.sampling.parameters import FilterParameters
from warploom.sampling.problems.sample import SampleProblem
from warploom.sampling.randomness import RandomState
from warploom.sampling.steps import SOFTMAX

__all__ = ["CudaSample", "filtered_spec", "plain_spec", "top_k_spec", "top_p_spec"]

_LARGEST_K = 512  # of the first kernel for top-k: `CandidateStorage::kCapacity`


def _spec(
    name: str, threads: int, blocks_per_sm: int, dtype: torch.dtype, from_logits: bool, **config: bool
) -> KernelSpec:
    return KernelSpec(
        family="sampling",
        header=f"warploom/sampling/{name}.cuh",
        kernel=f"warploom::sampling::{name}_kernel",
        config={
            "In": cpp_type(dtype),
            "kFromLogits": from_logits,
            **config,
            "kThreads": threads,
            "kBlocksPerSm": blocks_per_sm,
        },
        params=(DrawParams,),
    )


@functools.cache
def plain_spec(dtype: torch.dtype, from_logits: bool) -> KernelSpec:
    """The kernel that draws from the whole distribution."""
    return _spec("draw_plain", stream_threads(dtype.itemsize), 2, dtype, from_logits)


@functools.cache
def top_p_spec(dtype: torch.dtype, from_logits: bool) -> KernelSpec:
    """The kernel that draws from the nucleus of most rows."""
    return _spec("draw_top_p", stream_threads(dtype.itemsize), 2, dtype, from_logits)


@functools.cache
def top_k_spec(dtype: torch.dtype, from_logits: bool, resident: bool) -> KernelSpec:
    """The kernel that draws from a few hundred of the largest values of a row, or of those what other filters keep."""
    return _spec(
        "draw_top_k", ROW_THREADS, selection_blocks(dtype.itemsize, resident), dtype, from_logits, kResident=resident
    )


@functools.cache
def filtered_spec(dtype: torch.dtype, from_logits: bool, resident: bool) -> KernelSpec:
    """The kernel that draws from what filters keep, for every row that there is."""
    return _spec("draw_filtered", ROW_THREADS, 2, dtype, from_logits, kResident=resident)


def _pending_rows(batch: int, parts: int, sms: int) -> int:
    """Rows at once in the kernel for those that are left, which takes the others after them.

    Most often there is none: the fewer blocks, the sooner that is known. If all are, four rows after one another still
    divide well among the multiprocessors.

    Examples
    --------
    >>> [_pending_rows(batch, parts=8, sms=132) for batch in (1, 64, 512)]
    [1, 33, 128]
    """
    return min(batch, max(2 * sms // parts, math.ceil(batch / 4)))


class CudaSample(Backend):
    """One read of the row, and a second launch for the rows that are not settled by that."""

    name = "cuda"
    needs_gpu = True
    min_arch = 80

    def supports(self, problem: SampleProblem) -> Support:
        return Support.of(vocab_fits(problem.vocab))

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
        params = draw_params(tokens, valid, source, indices, parameters, random, filter_bits(problem.steps))
        sms = sm_count(source.device)
        launch = functools.partial(launch_rows, device=source.device)
        kind = (problem.dtype, SOFTMAX in problem.steps)
        sizes = (problem.vocab, source.element_size(), problem.arch, sms)
        filters = set(problem.steps) - {SOFTMAX}

        def stream(spec: KernelSpec) -> None:
            threads = stream_threads(problem.dtype.itemsize)
            parts = stream_parts(problem.batch, *sizes)
            launch(spec, params, rows=problem.batch, parts=parts, threads=threads, smem=threads * STREAM_BYTES)

        pending = True  # rows are left to the last kernel by one before it, few of them
        if not filters:
            stream(plain_spec(*kind))
            return random.advance()
        if "top_k" in filters and (parameters.top_k.tensor is not None or 1 <= parameters.top_k.value <= _LARGEST_K):
            shape = selection_shape(problem.batch, *sizes)
            smem = max(shape.share_bytes, CANDIDATE_BYTES)
            launch(top_k_spec(*kind, shape.resident), params, rows=problem.batch, parts=shape.parts, smem=smem)
        elif filters == {"top_p"}:
            stream(top_p_spec(*kind))
        else:
            pending = False
        shape = row_shape(problem.batch, *sizes)
        rows = problem.batch
        if pending:
            params = params.replaced("only_pending", 1)
            rows = _pending_rows(rows, shape.parts, sms)
        spec = filtered_spec(*kind, shape.resident)
        launch(spec, params, rows=rows, parts=shape.parts, smem=shape.share_bytes, pdl=pending)
        return random.advance()
