"""What decides who filters a distribution."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from warploom.core.problem import Problem
from warploom.sampling.steps import Steps

__all__ = ["RenormProblem", "TopKMaskProblem"]


@dataclass(frozen=True, kw_only=True)
class RenormProblem(Problem):
    """The distribution at the end of a filter chain.

    Attributes
    ----------
    batch, vocab : int
        Rows, and entries of a row.
    dtype : torch.dtype
        Of the logits or probabilities.
    out_dtype : torch.dtype
        Of the resulting probabilities.
    steps : tuple of str
        The chain, see `warploom.sampling.steps`.
    """

    batch: int
    vocab: int
    dtype: torch.dtype
    out_dtype: torch.dtype
    steps: Steps


@dataclass(frozen=True, kw_only=True)
class TopKMaskProblem(Problem):
    """Logits ``[batch, vocab]`` of `dtype` with all but the k largest of a row at −inf."""

    batch: int
    vocab: int
    dtype: torch.dtype
