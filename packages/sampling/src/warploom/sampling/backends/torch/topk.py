"""Top-k selection through ``torch.topk``."""

from __future__ import annotations

import torch

from warploom.core.backends import Backend, Support
from warploom.sampling.problems.topk import TopKProblem

__all__ = ["TorchTopK"]


class TorchTopK(Backend):
    """torch's radix selection. Which of several equal values it takes at the border is not stated."""

    name = "torch"

    def supports(self, problem: TopKProblem) -> Support:
        return Support.of((not problem.deterministic, "torch.topk leaves open which of several equal values it takes"))

    def run(self, problem: TopKProblem, values: torch.Tensor, indices: torch.Tensor, source: torch.Tensor) -> None:
        """Write `values` and `indices` (int64), ``[batch, k]``."""
        torch.topk(source, problem.k, dim=-1, sorted=problem.ordered, out=(values, indices))
