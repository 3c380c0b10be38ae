"""Philox 4x32-10 in torch: the oracle of the device header ``warploom/philox.cuh``.

The mapping from (seed, offset, row, draw) to numbers is stated in `warploom.sampling.randomness`. The 32-bit words live
in int64 tensors; a product of two of them wraps around 2**64, which leaves both halves right.
"""

from __future__ import annotations

import torch

from warploom.sampling.randomness import RandomState

__all__ = ["block_words", "exponential", "philox4x32", "random_words", "uniform"]

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)  # the golden ratio and sqrt(3) - 1
_ROUNDS = 10

Words4 = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def _multiply(word: torch.Tensor, multiplier: int) -> tuple[torch.Tensor, torch.Tensor]:
    product = word * multiplier
    return (product >> 32) & _MASK, product & _MASK


def philox4x32(counter: Words4, key: tuple[torch.Tensor, torch.Tensor]) -> Words4:
    """Ten rounds on a 128-bit counter (lowest word first) under a 64-bit key; all tensors broadcast.

    Examples
    --------
    >>> import torch
    >>> zero = torch.zeros((), dtype=torch.int64)
    >>> [hex(int(word)) for word in philox4x32((zero,) * 4, (zero,) * 2)]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3


def _column(tensor: torch.Tensor | None, value: int, rows: int, device: torch.device) -> torch.Tensor:
    if tensor is None:
        return torch.full((rows, 1), value, dtype=torch.int64, device=device)
    return tensor.expand(rows).unsqueeze(1)


def block_words(random: RandomState, rows: int, blocks: torch.Tensor) -> torch.Tensor:
    """The four words of counter blocks, ``[n]`` for all rows or ``[rows, n]``: int64 ``[rows, n, 4]``."""
    device = blocks.device
    seed = _column(random.seed, random.seed_value, rows, device)
    offset = _column(random.offset, random.offset_value, rows, device)
    row = torch.arange(rows, device=device).unsqueeze(1)
    if random.per_row_seed:
        row = torch.zeros_like(row)
    counter = (blocks if blocks.dim() == 2 else blocks.unsqueeze(0), row, offset & _MASK, (offset >> 32) & _MASK)
    return torch.stack(philox4x32(counter, (seed & _MASK, (seed >> 32) & _MASK)), dim=-1)


def random_words(random: RandomState, rows: int, draws: int, device: torch.device, first_draw: int = 0) -> torch.Tensor:
    """The words of draws `first_draw` (a multiple of 4) and up of every row, int64 ``[rows, draws]``."""
    blocks = torch.arange(first_draw // 4, first_draw // 4 + (draws + 3) // 4, device=device)
    return block_words(random, rows, blocks).flatten(1)[:, :draws]


def uniform(words: torch.Tensor) -> torch.Tensor:
    """Float32 numbers in [0, 1), multiples of 2**-24."""
    return (words >> 8).to(torch.float32) * 2.0**-24


def exponential(words: torch.Tensor) -> torch.Tensor:
    """Exponentially distributed float64 numbers of rate 1, in (0, 23)."""
    return -torch.log1p((words.to(torch.float64) + 0.5) * -(2.0**-32))
