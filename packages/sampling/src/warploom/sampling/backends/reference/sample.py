"""Drawing tokens in plain torch: the whole chain, then an exponential race over what is left."""

from __future__ import annotations

import torch

from warploom.core.backends import Backend, Support
from warploom.sampling.backends.reference.filters import Chain, filter_rows
from warploom.sampling.backends.reference.race import race
from warploom.sampling.parameters import FilterParameters
from warploom.sampling.problems.sample import SampleProblem
from warploom.sampling.randomness import RandomState

__all__ = ["ReferenceSample"]


class ReferenceSample(Backend):
    """The definition, step by step."""

    name = "reference"

    def supports(self, problem: SampleProblem) -> Support:
        return Support()

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
        """Draw `tokens` ``[batch]`` (int32) with `valid` ``[batch]`` (bool) and advance the offset.

        `source` is ``[rows, vocab]``; output ``i`` draws from row ``indices[i]``, or from row ``i`` without `indices`.
        Parameters and random numbers belong to outputs, not to rows of `source`.
        """
        known: torch.Tensor | None = None
        if indices is not None:
            known = (indices >= 0) & (indices < source.shape[0])
            if source.shape[0] == 0:
                tokens.zero_()
                valid.zero_()
                return
            source = source.index_select(0, torch.where(known, indices, 0))
        drawn, drawable = _draw(filter_rows(source, problem.steps, parameters), random)
        if known is not None:
            drawn, drawable = torch.where(known, drawn, 0), drawable & known
        tokens.copy_(drawn)
        valid.copy_(drawable)
        random.advance()


def _draw(chain: Chain, random: RandomState) -> tuple[torch.Tensor, torch.Tensor]:
    rows, kept, nucleus, cuts = chain
    if nucleus is None or cuts is None:
        return race(torch.where(kept, rows.weights, 0.0), random)
    # A top_p that keeps all, or the largest alone, is a filter like others.
    racing = torch.where(cuts, kept, kept & nucleus)
    return race(torch.where(racing, rows.weights, 0.0), random, nucleus)
