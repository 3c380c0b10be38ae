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

__all__ = ["Granularity", "ceil_div", "check_block_scales", "layout_of", "logical_scale", "scale_of_rows"]

Granularity = tuple[int, int, int]


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def check_block_scales(
    check: Checker,
    a_scale: Any,
    b_scale: Any,
    granularity: Any,
    mode: str | None,
    *,
    rows: int,
    a_lead: tuple[int, ...] = (),
    b_lead: tuple[int, ...] = (),
) -> Granularity:
    """Check the scales of operands of which `check` knows n and k, and return their granularity.

    Parameters
    ----------
    mode : {None, "MN", "K"}
        How scales are stored. None takes the logical shape with any strides, such as those of the quantisers.
    rows : int
        Of the first operand.
    a_lead, b_lead : tuple of int
        Leading dimensions of the scales.
    """
    gm, gn, gk = _check_granularity(check, granularity)
    if mode not in (None, "MN", "K"):
        raise ArgumentError.of(check.op, "scale_major_mode", "'MN', 'K' or None", repr(mode))
    k_blocks = ceil_div(check["k"], gk)
    _check_scale(check, "a_scale", a_scale, (*a_lead, ceil_div(rows, gm), k_blocks), mode)
    _check_scale(check, "b_scale", b_scale, (*b_lead, ceil_div(check["n"], gn), k_blocks), mode)
    return gm, gn, gk


def _check_granularity(check: Checker, granularity: Any) -> Granularity:
    """Three positive sizes (m, n, k) of the blocks that share a scale."""
    valid = isinstance(granularity, (tuple, list)) and len(granularity) == 3
    valid = valid and all(isinstance(size, int) and size > 0 for size in granularity)
    if not valid:
        raise ArgumentError.of(
            check.op, "scale_granularity_mnk", "three positive integers (m, n, k)", repr(granularity)
        )
    m, n, k = granularity
    return m, n, k


def _check_scale(check: Checker, name: str, scale: Any, blocks: tuple[int, ...], mode: str | None) -> None:
    """Check a scale against its number of blocks, ``[*lead, row_blocks, k_blocks]``."""
    *lead, row_blocks, k_blocks = blocks
    stored = (*lead, k_blocks, row_blocks) if mode == "MN" else blocks
    tensor = check.tensor(name, scale, " ".join("_" * len(stored)), dtype=torch.float32)
    if tuple(tensor.shape) != stored:
        order = "k_blocks, row_blocks" if mode == "MN" else "row_blocks, k_blocks"
        hint = f"scale_major_mode={mode!r} stores [{order}]."
        raise ArgumentError.of(check.op, name, f"of shape {stored}", f"shape {tuple(tensor.shape)}", hint)


def logical_scale(scale: torch.Tensor, mode: str | None) -> torch.Tensor:
    """The view ``[..., row_blocks, k_blocks]`` of stored scales."""
    return scale.mT if mode == "MN" else scale


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
