"""What decides who computes SiLU-and-multiply or RMSNorm and quantises the result to fp8."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from warploom.core.problem import Problem

__all__ = ["RmsNormQuantProblem", "SiluAndMulQuantProblem"]


@dataclass(frozen=True, kw_only=True)
class SiluAndMulQuantProblem(Problem):
    """``q[batch, rows, columns]`` of the gates and factors in ``x[batch, rows, 2 * columns]``.

    Attributes
    ----------
    group_size : int, optional
        Columns of a row that share a scale; None where one scale is given for all.
    power_of_two : bool
        Scales are rounded up to powers of two (ue8m0).
    masked : bool
        Of each matrix only so many rows count as a tensor on the device says.
    aligned : bool
        Rows can be read as 16-byte vectors, and the same elements written as vectors of fp8.
    """

    batch: int
    rows: int
    columns: int
    group_size: int | None
    dtype: torch.dtype
    out_dtype: torch.dtype
    power_of_two: bool = False
    masked: bool = False
    aligned: bool = True


@dataclass(frozen=True, kw_only=True)
class RmsNormQuantProblem(Problem):
    """``q[batch, rows, columns]`` of the normalised rows of ``x``, or of ``x + residual``.

    Attributes
    ----------
    group_size : int, optional
        Columns of a row that share a scale, -1 for all; None where one scale is given for all rows.
    residual_dtype : torch.dtype, optional
        None without a residual.
    power_of_two, aligned : bool
        As in `SiluAndMulQuantProblem`; `aligned` holds for the residual and the weight too.
    """

    batch: int
    rows: int
    columns: int
    group_size: int | None
    dtype: torch.dtype
    weight_dtype: torch.dtype
    out_dtype: torch.dtype
    residual_dtype: torch.dtype | None = None
    power_of_two: bool = False
    aligned: bool = True
