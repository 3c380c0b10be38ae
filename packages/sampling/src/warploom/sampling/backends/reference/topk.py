"""Top-k selection by a stable sort."""

from __future__ import annotations

import torch

from warploom.core.backends import Backend, Support
from warploom.sampling.problems.topk import TopKProblem

__all__ = ["ReferenceTopK"]


class ReferenceTopK(Backend):
    """The definition: always ordered, equal values in order of their indices."""

    name = "reference"

    def supports(self, problem: TopKProblem) -> Support:
        return Support()

    def run(self, problem: TopKProblem, values: torch.Tensor, indices: torch.Tensor, source: torch.Tensor) -> None:
        """Write `values` and `indices` (int64), ``[batch, k]``."""
        ordered = source.sort(dim=-1, descending=True, stable=True)
        values.copy_(ordered.values[:, : problem.k])
        indices.copy_(ordered.indices[:, : problem.k])
