"""Drawing one token a row: the exponential race, in two heats. `warploom.sampling.steps` has the definition."""

from __future__ import annotations

import torch

from warploom.sampling.backends.reference.philox import block_words, exponential
from warploom.sampling.randomness import QUAD, QUAD_TILE, SECOND_HEAT, RandomState

__all__ = ["race"]


def race(
    weights: torch.Tensor, random: RandomState, finish: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw token ``t`` with probability ``weights[t] / sum(weights)``, of those that may win.

    Parameters
    ----------
    weights : torch.Tensor
        ``[rows, vocab]``, not negative, not necessarily normalised.
    random : RandomState
        Of the call; its offset is not advanced.
    finish : torch.Tensor, optional
        ``[rows, vocab]``, bool: the first of these tokens wins; all by default.

    Returns
    -------
    tokens : torch.Tensor
        ``[rows]``, int32; 0 for rows without a finite positive sum (NaN, infinities, no positive weight).
    valid : torch.Tensor
        ``[rows]``, bool: the row had a distribution.
    """
    weights = weights.to(torch.float64)
    rows, vocab = weights.shape
    mass = weights.sum(-1)
    valid = (mass > 0) & torch.isfinite(mass)

    quads = torch.nn.functional.pad(weights, (0, -vocab % QUAD)).reshape(rows, -1, QUAD)
    rates = (quads[..., 0] + quads[..., 1]) + (quads[..., 2] + quads[..., 3])
    times = _times(_quad_numbers(random, rates), rates)
    if finish is None:
        quad = torch.argmin(times, dim=-1, keepdim=True)
        heat = _heat(random, quads[torch.arange(rows, device=quad.device), quad[:, 0]].unsqueeze(1), quad)[:, 0]
        token = quad[:, 0] * QUAD + torch.argmin(heat, dim=-1)
    else:
        heat = _heat(random, quads, torch.arange(rates.shape[1], device=rates.device))
        first = heat.amin(-1, keepdim=True)
        behind = torch.where(heat > first, heat - first, 0.0)
        arrivals = torch.where(quads > 0, times.unsqueeze(-1) + behind, torch.inf).reshape(rows, -1)[:, :vocab]
        token = torch.argmin(torch.where(finish, arrivals, torch.inf), dim=-1)
    return torch.where(valid, token, 0).to(torch.int32), valid


def _times(exponentials: torch.Tensor, rates: torch.Tensor) -> torch.Tensor:
    return torch.where(rates > 0, exponentials / rates, torch.inf)


def _heat(random: RandomState, weights: torch.Tensor, quads: torch.Tensor) -> torch.Tensor:
    """Times of the tokens of `quads`, ``[rows, quads, QUAD]``, in their own heats."""
    words = block_words(random, weights.shape[0], quads + SECOND_HEAT)
    return _times(exponential(words), weights)


def _quad_numbers(random: RandomState, rates: torch.Tensor) -> torch.Tensor:
    """The exponential number of every quad: a block of words serves quads that are 32 apart."""
    rows, count = rates.shape
    tiles = -(-count // QUAD_TILE)
    blocks = torch.arange(tiles * QUAD_TILE // 4, device=rates.device)
    words = block_words(random, rows, blocks).reshape(rows, tiles, QUAD_TILE // 4, 4)
    return exponential(words.transpose(-1, -2).reshape(rows, -1)[:, :count])
