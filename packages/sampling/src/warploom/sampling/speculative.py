"""Verification of speculative tokens against the target model."""

from __future__ import annotations

from typing import Any

import torch

from warploom.core.backends import Operator
from warploom.core.device import device_guard
from warploom.core.tensors import Checker
from warploom.core.torch_ops import register_op
from warploom.sampling.backends.cuda.speculative import CudaSpeculative
from warploom.sampling.backends.reference.speculative import ReferenceSpeculative
from warploom.sampling.docstrings import shared_docs
from warploom.sampling.parameters import FLOAT_TYPES
from warploom.sampling.problems.speculative import SpeculativeProblem
from warploom.sampling.randomness import RANDOM_SCHEMA, RandomState, random_state
from warploom.sampling.sample import require_no_nan

__all__ = ["chain_speculative_sampling"]

CHAIN_SPECULATIVE = Operator(
    "chain_speculative_sampling", family="sampling", backends=(CudaSpeculative(), ReferenceSpeculative())
)


@shared_docs
def chain_speculative_sampling(
    draft_probs: torch.Tensor,
    draft_token_ids: torch.Tensor,
    target_probs: torch.Tensor,
    maybe_output_accepted_token_num: torch.Tensor | None = None,
    maybe_output_emitted_draft_token_num: torch.Tensor | None = None,
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    seed: int | torch.Tensor | None = None,
    offset: int | torch.Tensor | None = None,
    *,
    check_nan: bool = False,
    return_valid: bool = False,
    out: torch.Tensor | None = None,
    backend: str = "auto",
) -> tuple[torch.Tensor, ...]:
    """Accept a prefix of each request's draft tokens and draw one more, so that all are distributed as the target's.

    Draft token ``x`` at position ``i`` passes if ``u * draft_probs[i, x] < target_probs[i, x]`` with its own uniform
    number ``u``. The first that fails is replaced by a token drawn from ``max(target_probs[i] - draft_probs[i], 0)``
    and ends the chain; if all pass, a bonus token is drawn from ``target_probs[n]``.

    Parameters
    ----------
    draft_probs : torch.Tensor
        ``[batch, n, vocab]``, float32, float16 or bfloat16; what the draft tokens were drawn from, summing to 1.
    draft_token_ids : torch.Tensor
        int32 or int64 ``[batch, n]``. An id outside the vocabulary, such as −1 for a request with fewer draft tokens,
        ends the chain: the token there is drawn from the target's distribution.
    target_probs : torch.Tensor
        ``[batch, n + 1, vocab]``, dtype of `draft_probs`, summing to 1.
    maybe_output_accepted_token_num : torch.Tensor, optional
        int32 ``[batch]`` to which the counts of `accepted_token_num` are added in place. Zeros are taken without it.
    maybe_output_emitted_draft_token_num : torch.Tensor, optional
        int32 ``[batch]`` to which the counts of `emitted_draft_token_num` are added in place. Zeros without it.
    {speculative_tail}

    Returns
    -------
    token_ids : torch.Tensor
        int32 ``[batch, n + 1]``: the accepted draft tokens, the drawn one, then −1.
    accepted_token_num : torch.Tensor
        int32 ``[batch]``: draft tokens that pass on their own, also after the first failure.
    emitted_draft_token_num : torch.Tensor
        int32 ``[batch]``: draft tokens in `token_ids`.
    valid : torch.Tensor
        bool ``[batch]``, with `return_valid`: false where the last token had no distribution (NaN, infinite, or nothing
        positive); that token is then 0.

    Raises
    ------
    {errors}

    Notes
    -----
    C. Chen et al., "Accelerating Large Language Model Decoding with Speculative Sampling", 2023. Where draft and target
    are equal but for rounding and a token fails nevertheless, the target's distribution replaces the empty difference.

    Examples
    --------
    >>> import torch, warploom
    >>> draft = torch.tensor([[[0.1, 0.2, 0.3, 0.4], [0.2, 0.3, 0.4, 0.1]]])
    >>> target = torch.tensor([[[0.0, 0.1, 0.6, 0.3], [1.0, 0.0, 0.0, 0.0], [0.7, 0.1, 0.1, 0.1]]])
    >>> tokens, accepted, emitted = warploom.chain_speculative_sampling(draft, torch.tensor([[2, 1]]), target, seed=0)
    >>> tokens, accepted, emitted
    (tensor([[ 2,  0, -1]], dtype=torch.int32), tensor([1], dtype=torch.int32), tensor([1], dtype=torch.int32))
    """
    check = Checker("chain_speculative_sampling")
    draft_probs = check.tensor("draft_probs", draft_probs, "batch n vocab", dtype=FLOAT_TYPES)
    ids = check.tensor("draft_token_ids", draft_token_ids, "batch n", dtype=(torch.int32, torch.int64))
    target_probs = check.tensor("target_probs", target_probs, "batch positions vocab", dtype=draft_probs.dtype)
    batch, n, vocab = check["batch"], check["n"], check["vocab"]
    check.require(check["positions"] == n + 1, "target_probs", f"of {n + 1} positions", f"{check['positions']}")
    check.require(vocab >= 1, "draft_probs", "of a vocabulary of 1 or more", f"shape {tuple(draft_probs.shape)}")

    counts = [
        torch.zeros(batch, dtype=torch.int32, device=ids.device)
        if given is None
        else check.output(name, given, (batch,), torch.int32)
        for name, given in (
            ("maybe_output_accepted_token_num", maybe_output_accepted_token_num),
            ("maybe_output_emitted_draft_token_num", maybe_output_emitted_draft_token_num),
        )
    ]
    token_ids = check.output("out", out, (batch, n + 1), torch.int32)
    valid = torch.empty(batch, dtype=torch.bool, device=ids.device)
    random = random_state(check, batch, seed, offset, generator, ids.device)
    if check_nan:
        require_no_nan(check.op, draft_probs=draft_probs, target_probs=target_probs)
    _speculate(token_ids, *counts, valid, draft_probs, ids, target_probs, *random, deterministic, backend)
    return (token_ids, *counts, valid) if return_valid else (token_ids, *counts)


def describe(draft_probs: torch.Tensor, deterministic: bool) -> SpeculativeProblem:
    """The problem of verifying tokens of this draft."""
    (batch, n, vocab), where = draft_probs.shape, SpeculativeProblem.where(draft_probs)
    dtype = draft_probs.dtype
    return SpeculativeProblem(
        **where, batch=batch, num_draft_tokens=n, vocab=vocab, dtype=dtype, deterministic=deterministic
    )


@register_op(
    "chain_speculative_sampling(Tensor(a!) token_ids, Tensor(b!) accepted, Tensor(c!) emitted, Tensor(d!) valid, "
    "Tensor draft_probs, Tensor draft_token_ids, Tensor target_probs, "
    f"{RANDOM_SCHEMA}, bool deterministic, str backend) -> ()"
)
def _speculate(
    token_ids: torch.Tensor, accepted: torch.Tensor, emitted: torch.Tensor, valid: torch.Tensor,
    draft_probs: torch.Tensor, draft_token_ids: torch.Tensor, target_probs: torch.Tensor, *rest: Any,
) -> None:  # fmt: skip
    random, (deterministic, backend) = RandomState(*rest[:4]), rest[4:]
    problem = describe(draft_probs, deterministic)
    chosen = CHAIN_SPECULATIVE.select(problem, backend).backend
    if problem.batch:
        with device_guard(draft_probs):
            chosen.run(problem, token_ids, accepted, emitted, valid, draft_probs, draft_token_ids, target_probs, random)
