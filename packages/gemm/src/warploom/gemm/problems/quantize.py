"""What decides who quantises to fp8."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from warploom.core.problem import Problem

__all__ = ["QuantizeBlocksProblem", "QuantizeTensorProblem"]


@dataclass(frozen=True, kw_only=True)
class QuantizeBlocksProblem(Problem):
    """Blocks of `block` (rows, columns) of ``x[batch, rows, columns]`` share a scale; (1, 128) for token groups.

    Attributes
    ----------
    power_of_two : bool
        Scales are rounded up to powers of two (ue8m0).
    aligned : bool
        Rows can be read as 16-byte vectors, and the same elements written as vectors of fp8.
    """

    batch: int
    rows: int
    columns: int
    block: tuple[int, int]
    dtype: torch.dtype
    out_dtype: torch.dtype
    power_of_two: bool = False
    aligned: bool = True


@dataclass(frozen=True, kw_only=True)
class QuantizeTensorProblem(Problem):
    """All `numel` elements share a scale, which is given when `static`."""

    numel: int
    dtype: torch.dtype
    out_dtype: torch.dtype
    static: bool = False
    aligned: bool = True
