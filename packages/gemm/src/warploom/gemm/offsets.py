"""Offsets, lengths and indices that live on the device, and the checks of their values that ``debug_checks`` turns on.

Those checks read values on the host, so they synchronise; they run inside the operators, out of the sight of tracing.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch

from warploom.core.errors import ArgumentError
from warploom.core.settings import settings
from warploom.core.tensors import Checker

__all__ = [
    "INDEX_DTYPES",
    "check_group_offsets",
    "check_groups",
    "check_indices",
    "check_offsets",
    "check_row_indices",
    "gathered",
    "rows_of",
]

INDEX_DTYPES = (torch.int32, torch.int64)


def check_group_offsets(check: Checker, m_indptr: Any) -> None:
    """Check the offsets of as many groups as `check` has bound."""
    offsets = check.tensor("m_indptr", m_indptr, "_", dtype=INDEX_DTYPES)
    expected = check["groups"] + 1
    if offsets.shape[0] != expected:
        raise ArgumentError.of(check.op, "m_indptr", f"of shape ({expected},)", f"shape {tuple(offsets.shape)}")


def check_row_indices(check: Checker, row_indices: Any, tokens: int) -> int:
    """Check which of so many tokens each row is, and return how many rows there are; without indices as many as tokens."""
    if row_indices is None:
        return tokens
    rows = check.tensor("row_indices", row_indices, "_", dtype=INDEX_DTYPES).shape[0]
    check.require(tokens > 0 or rows == 0, "row_indices", "empty where `a` has no rows", f"of {rows} rows")
    return rows


def check_groups(op: str, a: torch.Tensor, m_indptr: torch.Tensor, row_indices: torch.Tensor | None) -> None:
    """With ``debug_checks``: indices name rows of `a`, and offsets lie within the rows of the groups."""
    check_indices(op, "row_indices", row_indices, a.shape[0])
    check_offsets(op, "m_indptr", m_indptr, rows_of(a, row_indices))


def rows_of(a: torch.Tensor, row_indices: torch.Tensor | None) -> int:
    """Rows of all groups together."""
    return (a if row_indices is None else row_indices).shape[0]


def gathered(x: torch.Tensor, row_indices: torch.Tensor | None) -> torch.Tensor:
    """The rows of `x` that indices name. A wrong index takes a row that is there."""
    if row_indices is None:
        return x
    if row_indices.numel() == 0:
        return x[:0]
    bits = x.view(torch.uint8) if x.element_size() == 1 else x  # torch gathers no fp8 everywhere
    return bits.index_select(0, row_indices.clamp(0, x.shape[0] - 1)).view(x.dtype)


def check_offsets(op: str, name: str, offsets: torch.Tensor, rows: int) -> None:
    """With ``debug_checks``: offsets start at 0, never fall and end within `rows`."""
    if not settings.debug_checks:
        return
    values = offsets.tolist()
    falling = any(after < before for before, after in itertools.pairwise(values))
    if values[0] != 0 or falling or values[-1] > rows:
        raise ArgumentError.of(op, name, f"offsets that start at 0, never fall and end at {rows} or before", values)


def check_indices(op: str, name: str, indices: torch.Tensor | None, limit: int) -> None:
    """With ``debug_checks``: every index is at least 0 and below `limit`."""
    if indices is None or not settings.debug_checks:
        return
    wrong = [value for value in indices.tolist() if not 0 <= value < limit]
    if wrong:
        raise ArgumentError.of(op, name, f"at least 0 and below {limit} everywhere", wrong[0])
