"""Launch of the kernel of `speculative.cuh`."""

from __future__ import annotations

import functools
from typing import Annotated

import torch

from warploom.core.backends import Backend, Support
from warploom.core.device import sm_count
from warploom.core.jit import KernelSpec, ParamStruct, cpp_type, i32, i64, ptr
from warploom.sampling.backends.cuda.draw import random_fields
from warploom.sampling.backends.cuda.rows import ROW_THREADS, launch_rows, stream_parts, vocab_fits
from warploom.sampling.problems.speculative import SpeculativeProblem
from warploom.sampling.randomness import RandomState

__all__ = ["CudaSpeculative", "speculative_spec"]


class SpeculativeParams(ParamStruct):
    cpp_name = "warploom::sampling::SpeculativeParams"
    draft: ptr
    target: ptr
    draft_ids: ptr
    tokens: ptr
    accepted: ptr
    emitted: ptr
    valid: ptr
    seed: ptr
    offset: ptr
    draft_strides: Annotated[i64, 3]
    target_strides: Annotated[i64, 3]
    ids_strides: Annotated[i64, 2]
    tokens_strides: Annotated[i64, 2]
    accepted_stride: i64
    emitted_stride: i64
    seed_stride: i64
    offset_stride: i64
    seed_value: i64
    offset_value: i64
    n: i32
    vocab: i32
    ids_are_64_bit: i32
    rows_have_seeds: i32


@functools.cache
def speculative_spec(dtype: torch.dtype) -> KernelSpec:
    """The kernel for probabilities of `dtype`."""
    return KernelSpec(
        family="sampling",
        header="warploom/sampling/speculative.cuh",
        kernel="warploom::sampling::speculative_kernel",
        config={"In": cpp_type(dtype), "kThreads": ROW_THREADS, "kBlocksPerSm": 4},
        params=(SpeculativeParams,),
    )


class CudaSpeculative(Backend):
    """One read of the row that decides, or of the two whose difference does."""

    name = "cuda"
    needs_gpu = True
    min_arch = 80

    def supports(self, problem: SpeculativeProblem) -> Support:
        return Support.of(vocab_fits(problem.vocab))

    def run(
        self,
        problem: SpeculativeProblem,
        token_ids: torch.Tensor,
        accepted: torch.Tensor,
        emitted: torch.Tensor,
        valid: torch.Tensor,
        draft_probs: torch.Tensor,
        draft_token_ids: torch.Tensor,
        target_probs: torch.Tensor,
        random: RandomState,
    ) -> None:
        """Write `token_ids` ``[batch, n + 1]`` and `valid` ``[batch]``, add to the two counts, advance the offset."""
        params = SpeculativeParams(
            draft=draft_probs,
            target=target_probs,
            draft_ids=draft_token_ids,
            tokens=token_ids,
            accepted=accepted,
            emitted=emitted,
            valid=valid,
            draft_strides=draft_probs.stride(),
            target_strides=target_probs.stride(),
            ids_strides=draft_token_ids.stride(),
            tokens_strides=token_ids.stride(),
            accepted_stride=accepted.stride(0),
            emitted_stride=emitted.stride(0),
            n=problem.num_draft_tokens,
            vocab=problem.vocab,
            ids_are_64_bit=draft_token_ids.dtype == torch.int64,
            **random_fields(random),
        )
        itemsize = 2 * target_probs.element_size()
        parts = stream_parts(problem.batch, problem.vocab, itemsize, problem.arch, sm_count(target_probs.device))
        launch_rows(speculative_spec(problem.dtype), params, target_probs.device, rows=problem.batch, parts=parts)
        random.advance()
