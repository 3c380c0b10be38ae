"""Softmax with temperature in plain torch."""

from __future__ import annotations

import torch

from warploom.core.backends import Backend, Support
from warploom.sampling.parameters import RowParameter
from warploom.sampling.problems.softmax import SoftmaxProblem

__all__ = ["ReferenceSoftmax", "exponent_scale", "shifted_logits", "softmax_rows"]

_FLOAT32 = torch.finfo(torch.float32)
_LOG2E = 1.4426950216293335  # in float32


def _inverse(temperature: RowParameter, logits: torch.Tensor) -> torch.Tensor:
    """``1 / temperature`` ``[rows, 1]``, clamped to normal numbers, so that 0 and infinity mean their limits; or NaN."""
    temperatures = temperature.column(logits, torch.float32)
    rate = temperatures.abs().reciprocal().clamp(_FLOAT32.tiny, _FLOAT32.max)
    return torch.where(temperatures >= 0, rate, torch.nan)


def exponent_scale(temperature: RowParameter, logits: torch.Tensor) -> torch.Tensor:
    """``log2(e) / temperature`` ``[rows, 1]`` in float32: what makes exponents of 2 of logits. NaN for a bad temperature."""
    return (_inverse(temperature, logits) * _LOG2E).clamp(max=_FLOAT32.max)


def shifted_logits(logits: torch.Tensor, temperature: RowParameter) -> tuple[torch.Tensor, torch.Tensor]:
    """``(logits - max) / temperature`` in float32, and which rows ``[rows, 1]`` are all −inf.

    The difference comes first: logits over a small temperature would overflow, or drown small differences in rounding.
    """
    rate = _inverse(temperature, logits)
    values = logits.to(torch.float32)
    top = values.amax(-1, keepdim=True)
    empty = top == -torch.inf
    return (values - torch.where(empty, 0.0, top)) * rate, empty & ~torch.isnan(rate)


def softmax_rows(logits: torch.Tensor, temperature: RowParameter) -> torch.Tensor:
    """Float32 probabilities; see `warploom.sampling.softmax` for the meaning of odd rows."""
    shifted, empty = shifted_logits(logits, temperature)
    weights = torch.exp(shifted)
    return torch.where(empty, 0.0, weights / weights.sum(-1, keepdim=True))


class ReferenceSoftmax(Backend):
    """The definition, step by step."""

    name = "reference"

    def supports(self, problem: SoftmaxProblem) -> Support:
        return Support()

    def run(
        self, problem: SoftmaxProblem, probs: torch.Tensor, logits: torch.Tensor, temperature: RowParameter
    ) -> None:
        """Write the probabilities of `logits` into `probs`, both ``[batch, vocab]``."""
        probs.copy_(softmax_rows(logits, temperature))
