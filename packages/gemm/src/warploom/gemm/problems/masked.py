"""What decides who computes a batched product of which only the first rows of each matrix count."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from warploom.core.problem import Problem

__all__ = ["MaskedGroupwiseProblem"]


@dataclass(frozen=True, kw_only=True)
class MaskedGroupwiseProblem(Problem):
    """``out[g, m, n] = a[g, m, k] @ b[g, n, k].T`` for the first ``masked_m[g]`` of `max_m` rows, with block scales.

    Attributes
    ----------
    expected_m : int
        The caller's guess of ``masked_m``, by which a kernel may choose its tiles.
    granularity : tuple of int
        Rows of `a`, rows of `b` and columns of both that share a scale.
    a_scale_layout, b_scale_layout : str
        "K", "MN" or "strided": which dimension of the stored scales is contiguous.
    """

    groups: int
    max_m: int
    n: int
    k: int
    expected_m: int
    a_dtype: torch.dtype
    b_dtype: torch.dtype
    out_dtype: torch.dtype
    granularity: tuple[int, int, int] = (1, 128, 128)
    a_scale_layout: str = "K"
    b_scale_layout: str = "K"
