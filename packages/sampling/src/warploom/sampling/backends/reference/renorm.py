"""Filtering distributions and logits in plain torch."""

from __future__ import annotations

import torch

from warploom.core.backends import Backend, Support
from warploom.sampling.backends.reference.filters import apply_steps, mask_top_k
from warploom.sampling.parameters import FilterParameters, RowParameter
from warploom.sampling.problems.renorm import RenormProblem, TopKMaskProblem

__all__ = ["ReferenceRenorm", "ReferenceTopKMask"]


class ReferenceRenorm(Backend):
    """The definition, step by step."""

    name = "reference"

    def supports(self, problem: RenormProblem) -> Support:
        return Support()

    def run(
        self, problem: RenormProblem, out: torch.Tensor, source: torch.Tensor, parameters: FilterParameters
    ) -> None:
        """Write the distribution at the end of the chain, ``[batch, vocab]``; `out` may be `source`."""
        out.copy_(apply_steps(source, problem.steps, parameters))


class ReferenceTopKMask(Backend):
    """The definition, step by step."""

    name = "reference"

    def supports(self, problem: TopKMaskProblem) -> Support:
        return Support()

    def run(self, problem: TopKMaskProblem, out: torch.Tensor, logits: torch.Tensor, top_k: RowParameter) -> None:
        """Write the masked logits, ``[batch, vocab]``; `out` may be `logits`."""
        out.copy_(mask_top_k(logits, top_k.column(logits, torch.int64)))
