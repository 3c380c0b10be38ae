"""Drawing one token a row: the exponential race, in two heats. `warploom.sampling.steps` has the definition."""

from __future__ import annotations

import torch

from warploom.sampling.backends.reference.philox import block_words, exponential
from warploom.sampling.randomness import QUAD, QUAD_TILE, ROUND_BLOCKS, SECOND_HEAT, RandomState

__all__ = ["race"]


def race(weights: torch.Tensor, random: RandomState, draw_round: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw token ``t`` with probability ``weights[t] / sum(weights)``.

    Quads of tokens race first, at the rate of their weight: quad ``q`` arrives at ``E1[q] / weight of q``. Then the tokens of
    the quad that arrives first race each other. Of several the one with the smallest index wins.

    Parameters
    ----------
    weights : torch.Tensor
        ``[rows, vocab]``, not negative, not necessarily normalised.
    random : RandomState
        Of the call; its offset is not advanced.
    draw_round : int
        Which of several draws of the call.

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
    first_block = draw_round * ROUND_BLOCKS
    quad = torch.argmin(_times(_quad_numbers(random, rates, first_block), rates), dim=-1)

    tokens = quads[torch.arange(rows, device=quad.device), quad]
    words = block_words(random, rows, (SECOND_HEAT + first_block + quad).unsqueeze(1))[:, 0]
    token = quad * QUAD + torch.argmin(_times(exponential(words), tokens), dim=-1)
    return torch.where(valid, token, 0).to(torch.int32), valid


def _times(exponentials: torch.Tensor, rates: torch.Tensor) -> torch.Tensor:
    return torch.where(rates > 0, exponentials / rates, torch.inf)


def _quad_numbers(random: RandomState, rates: torch.Tensor, first_block: int) -> torch.Tensor:
    """The exponential number of every quad: a block of words serves quads that are 32 apart."""
    rows, count = rates.shape
    tiles = -(-count // QUAD_TILE)
    blocks = torch.arange(tiles * QUAD_TILE // 4, device=rates.device)
    words = block_words(random, rows, blocks + first_block).reshape(rows, tiles, QUAD_TILE // 4, 4)
    return exponential(words.transpose(-1, -2).reshape(rows, -1)[:, :count])
