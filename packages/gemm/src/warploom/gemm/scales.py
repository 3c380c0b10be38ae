"""Block scales of fp8 operands: granularity, the two storage orders, and one logical view of both.

A scale of granularity ``(rows, columns)`` has one float32 value for each block of that size, partial blocks at the
edges included. "K" stores it ``[row_blocks, k_blocks]`` with neighbours along K, "MN" stores ``[k_blocks, row_blocks]``
with neighbours along the rows. Backends only see the logical view ``[row_blocks, k_blocks]`` and its strides.
"""

from __future__ import annotations

from typing import Any

import torch

from warploom.core.errors import ArgumentError
from warploom.core.tensors import Checker

__all__ = [
    "Granularity",
    "ceil_div",
    "check_granularity",
    "check_major_mode",
    "layout_of",
    "scale_of_rows",
    "scale_view",
]

Granularity = tuple[int, int, int]


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def check_granularity(check: Checker, granularity: Any) -> Granularity:
    """Three positive sizes (m, n, k) of the blocks that share a scale."""
    valid = isinstance(granularity, (tuple, list)) and len(granularity) == 3
    valid = valid and all(isinstance(size, int) and size > 0 for size in granularity)
    if not valid:
        raise ArgumentError.of(
            check.op, "scale_granularity_mnk", "three positive integers (m, n, k)", repr(granularity)
        )
    m, n, k = granularity
    return m, n, k


def check_major_mode(check: Checker, mode: str | None) -> str | None:
    if mode not in (None, "MN", "K"):
        raise ArgumentError.of(check.op, "scale_major_mode", "'MN', 'K' or None", repr(mode))
    return mode


def scale_view(
    check: Checker, name: str, scale: Any, blocks: tuple[int, int], mode: str | None, lead: tuple[int, ...] = ()
) -> torch.Tensor:
    """Check a scale against its number of blocks and return the logical view ``[*lead, row_blocks, k_blocks]``.

    Mode None takes the logical shape with any strides, such as the column-major scales of the quantisers.
    """
    row_blocks, k_blocks = blocks
    stored = (*lead, k_blocks, row_blocks) if mode == "MN" else (*lead, row_blocks, k_blocks)
    tensor = check.tensor(name, scale, " ".join("_" * len(stored)), dtype=torch.float32)
    if tuple(tensor.shape) != stored:
        order = "k_blocks, row_blocks" if mode == "MN" else "row_blocks, k_blocks"
        hint = f"scale_major_mode={mode!r} stores [{order}]."
        raise ArgumentError.of(check.op, name, f"of shape {stored}", f"shape {tuple(tensor.shape)}", hint)
    return tensor.mT if mode == "MN" else tensor


def layout_of(scale: torch.Tensor) -> str:
    """Storage order of a logical scale: "K", "MN", or "strided" when neither dimension is dense.

    A scale that is dense both ways (one row block or one K block) counts as "K".
    """
    if scale.stride(-1) == 1 or scale.shape[-1] <= 1:
        return "K"
    return "MN" if scale.stride(-2) == 1 or scale.shape[-2] <= 1 else "strided"


def scale_of_rows(scale: torch.Tensor, rows: int, block_rows: int) -> torch.Tensor:
    """Repeat scales ``[..., row_blocks, k_blocks]`` so that every row has its own: ``[..., rows, k_blocks]``."""
    return scale if block_rows == 1 else scale.repeat_interleave(block_rows, dim=-2)[..., :rows, :]
