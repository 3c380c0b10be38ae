"""What decides who verifies speculative tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from warploom.core.problem import Problem

__all__ = ["SpeculativeProblem"]


@dataclass(frozen=True, kw_only=True)
class SpeculativeProblem(Problem):
    """Verification of a chain of draft tokens.

    Attributes
    ----------
    batch, num_draft_tokens, vocab : int
        Requests, draft tokens of each, and entries of a distribution.
    dtype : torch.dtype
        Of both models' probabilities.
    deterministic : bool
        Whether the same tokens must come out on every run whatever else the batch holds.
    """

    batch: int
    num_draft_tokens: int
    vocab: int
    dtype: torch.dtype
    deterministic: bool = True
