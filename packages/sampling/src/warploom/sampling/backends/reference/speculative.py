"""Chain speculative verification in plain torch."""

from __future__ import annotations

import torch

from warploom.core.backends import Backend, Support
from warploom.sampling.backends.reference.philox import random_words, uniform
from warploom.sampling.backends.reference.race import race
from warploom.sampling.problems.speculative import SpeculativeProblem
from warploom.sampling.randomness import ACCEPT_DRAW, RandomState
from warploom.sampling.steps import LARGEST_PROB

__all__ = ["ReferenceSpeculative"]


class ReferenceSpeculative(Backend):
    """The definition, step by step."""

    name = "reference"

    def supports(self, problem: SpeculativeProblem) -> Support:
        return Support()

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
        """Write `token_ids` ``[batch, n + 1]`` and `valid` ``[batch]``, add to the two counts, advance the offset.

        Shapes of the inputs: ``[batch, n, vocab]``, ``[batch, n]``, ``[batch, n + 1, vocab]``.
        """
        n = problem.num_draft_tokens
        known = (draft_token_ids >= 0) & (draft_token_ids < problem.vocab)
        accept = known & _accepts(draft_probs, draft_token_ids, known, target_probs, random)
        length = accept.to(torch.int64).cumprod(-1).sum(-1)  # draft tokens before the first that is not accepted

        last, good = race(_last_distribution(draft_probs, target_probs, known, length), random)
        position = torch.arange(n + 1, device=token_ids.device)
        chain = torch.cat([draft_token_ids.to(torch.int32), last.unsqueeze(1)], dim=1)
        chain = torch.where(position == length.unsqueeze(1), last.unsqueeze(1), chain)
        token_ids.copy_(torch.where(position > length.unsqueeze(1), -1, chain))
        accepted.add_(accept.sum(-1))
        emitted.add_(length)
        valid.copy_(good)
        random.advance()


def _accepts(
    draft_probs: torch.Tensor,
    draft_token_ids: torch.Tensor,
    known: torch.Tensor,
    target_probs: torch.Tensor,
    random: RandomState,
) -> torch.Tensor:
    """Whether each draft token on its own passes ``u * draft < target``, in float32."""
    batch, n = draft_token_ids.shape
    at = torch.where(known, draft_token_ids, 0).to(torch.int64).unsqueeze(-1)
    draft = draft_probs.gather(-1, at).squeeze(-1).to(torch.float32)
    target = target_probs[:, :n].gather(-1, at).squeeze(-1).to(torch.float32)
    u = uniform(random_words(random, batch, n, draft_token_ids.device, first_draw=ACCEPT_DRAW))
    return u * draft < target


def _last_distribution(
    draft_probs: torch.Tensor, target_probs: torch.Tensor, known: torch.Tensor, length: torch.Tensor
) -> torch.Tensor:
    """Weights of the token after the accepted ones: what the target has more than the draft, or the target's own."""
    batch, n = known.shape
    row = torch.arange(batch, device=length.device)
    target = target_probs[row, length].to(torch.float32)
    if n == 0:
        return _bounded(target.clamp(min=0.0))
    at = length.clamp(max=n - 1)
    excess = (target - draft_probs[row, at].to(torch.float32)).clamp(min=0.0)
    rejected = (length < n) & known[row, at]
    # Equal distributions reject by rounding alone; then the target's own is the right one.
    use_excess = rejected & ~(excess.sum(-1) == 0)
    return _bounded(torch.where(use_excess.unsqueeze(1), excess, target.clamp(min=0.0)))


def _bounded(weights: torch.Tensor) -> torch.Tensor:
    """Weights of which those that count as infinite are."""
    return torch.where(weights > LARGEST_PROB, torch.inf, weights)
