"""Requests to apply rotary position embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from warploom.core.problem import Problem


@dataclass(frozen=True, kw_only=True)
class RopeProblem(Problem):
    """Queries and keys to rotate. Tokens and heads scale the work and do not decide."""

    dtype: torch.dtype
    head_dim: int
    rotary_dim: int
    interleave: bool
    unit_strides: bool = True  # of the last dimensions


@dataclass(frozen=True)
class RopeScaling:
    """How the frequencies of a `RopeProblem` follow from the position's index.

    Attributes
    ----------
    rope_scale, rope_theta : float
        Divisor and base of the frequencies.
    low_freq_factor, high_freq_factor : float
        Llama 3.1: turns within `old_context_len` below which a frequency is divided, above which it is kept.
    old_context_len : int
        Llama 3.1: the context length before the extension; 0 divides all frequencies alike.
    """

    rope_scale: float
    rope_theta: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    old_context_len: int = 0
