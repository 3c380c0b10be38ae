"""Softmax through ``torch.softmax``."""

from __future__ import annotations

import torch

from warploom.core.backends import Backend, Support
from warploom.sampling.backends.reference.softmax import shifted_logits
from warploom.sampling.parameters import RowParameter
from warploom.sampling.problems.softmax import SoftmaxProblem

__all__ = ["TorchSoftmax"]


class TorchSoftmax(Backend):
    """torch's fused softmax, after one pass for the temperature; rows that are all −inf are set to 0 afterwards."""

    name = "torch"

    def supports(self, problem: SoftmaxProblem) -> Support:
        return Support()

    def run(
        self, problem: SoftmaxProblem, probs: torch.Tensor, logits: torch.Tensor, temperature: RowParameter
    ) -> None:
        """Write the probabilities of `logits` into `probs`, both ``[batch, vocab]``."""
        shifted, empty = shifted_logits(logits, temperature)
        torch.softmax(shifted, dim=-1, out=probs)
        probs.masked_fill_(empty, 0.0)
