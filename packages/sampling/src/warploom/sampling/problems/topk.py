"""What decides who serves a top-k selection."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from warploom.core.problem import Problem

__all__ = ["TopKProblem"]


@dataclass(frozen=True, kw_only=True)
class TopKProblem(Problem):
    """The k largest values of each row and where they are.

    Attributes
    ----------
    batch, vocab, k : int
        Rows, entries of a row, and how many are wanted.
    dtype : torch.dtype
        Of the values.
    ordered : bool
        Whether they must come largest first.
    deterministic : bool
        Whether equal values must be taken in order of their indices.
    """

    batch: int
    vocab: int
    k: int
    dtype: torch.dtype
    ordered: bool
    deterministic: bool
