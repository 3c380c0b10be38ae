"""What decides who serves a softmax."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from warploom.core.problem import Problem

__all__ = ["SoftmaxProblem"]


@dataclass(frozen=True, kw_only=True)
class SoftmaxProblem(Problem):
    """Softmax with temperature of logits ``[batch, vocab]`` into float32.

    Attributes
    ----------
    batch, vocab : int
        Rows, and logits a row.
    dtype : torch.dtype
        Of the logits.
    """

    batch: int
    vocab: int
    dtype: torch.dtype
