"""Drawing one token a row: the exponential race."""

from __future__ import annotations

import torch

from warploom.sampling.backends.reference.philox import exponential, random_words
from warploom.sampling.randomness import RandomState

__all__ = ["race"]


def race(weights: torch.Tensor, random: RandomState) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw token ``t`` with probability ``weights[t] / sum(weights)``.

    Token ``t`` arrives at time ``E_t / weights[t]`` with ``E_t`` its own exponential number; the first to arrive, of
    several the one with the smallest index, is drawn. In logarithms this is the Gumbel-max rule
    ``argmax(log(weights) - log(E))``.

    Parameters
    ----------
    weights : torch.Tensor
        ``[rows, vocab]``, float32, not negative, not necessarily normalised.
    random : RandomState
        Of the call; its offset is not advanced.

    Returns
    -------
    tokens : torch.Tensor
        ``[rows]``, int32; 0 for rows without a finite positive sum (NaN, infinities, no positive weight).
    valid : torch.Tensor
        ``[rows]``, bool: the row had a distribution.
    """
    wide = weights.to(torch.float64)
    mass = wide.sum(-1)
    valid = (mass > 0) & torch.isfinite(mass)
    noise = exponential(random_words(random, weights.shape[0], weights.shape[1], weights.device))
    first = torch.argmin(noise / wide, dim=-1)
    return torch.where(valid, first, 0).to(torch.int32), valid
