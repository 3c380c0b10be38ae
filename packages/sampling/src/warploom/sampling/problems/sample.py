"""What decides who serves a draw."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from warploom.core.problem import Problem
from warploom.sampling.steps import Steps

__all__ = ["SampleProblem"]


@dataclass(frozen=True, kw_only=True)
class SampleProblem(Problem):
    """One token a row from the end of a filter chain.

    Attributes
    ----------
    batch, vocab : int
        Tokens to draw, and entries of a row.
    dtype : torch.dtype
        Of the logits or probabilities.
    steps : tuple of str
        The chain, see `warploom.sampling.steps`; empty draws from the given probabilities.
    deterministic : bool
        Whether the same numbers must come out on every run whatever else the batch holds.
    """

    batch: int
    vocab: int
    dtype: torch.dtype
    steps: Steps
    deterministic: bool = True
