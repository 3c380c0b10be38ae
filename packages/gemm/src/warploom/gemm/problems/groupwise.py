"""What decides who computes an fp8 product with block scales."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from warploom.core.problem import Problem

__all__ = ["GroupwiseProblem"]


@dataclass(frozen=True, kw_only=True)
class GroupwiseProblem(Problem):
    """``out[m, n] = a[m, k] @ b[n, k].T`` with one scale for each block of either operand.

    Attributes
    ----------
    granularity : tuple of int
        Rows of `a`, rows of `b` and columns of both that share a scale: (1, 128, 128) is DeepSeek's recipe.
    a_scale_layout, b_scale_layout : str
        "K", "MN" or "strided": which dimension of the stored scales is contiguous.
    """

    untuned = frozenset(("a_scale_layout", "b_scale_layout"))

    m: int
    n: int
    k: int
    a_dtype: torch.dtype
    b_dtype: torch.dtype
    out_dtype: torch.dtype
    granularity: tuple[int, int, int] = (1, 128, 128)
    a_scale_layout: str = "K"
    b_scale_layout: str = "K"
