"""What decides who computes a grouped fp8 product with block scales."""

from __future__ import annotations

from dataclasses import dataclass

from warploom.gemm.problems.grouped import GroupedScaledProblem

__all__ = ["GroupedGroupwiseProblem"]


@dataclass(frozen=True, kw_only=True)
class GroupedGroupwiseProblem(GroupedScaledProblem):
    """`GroupedScaledProblem` with scales of blocks.

    Attributes
    ----------
    granularity : tuple of int
        Rows of `a`, rows of `b` and columns of both that share a scale.
    a_scale_layout, b_scale_layout : str
        "K", "MN" or "strided": which dimension of the stored scales is contiguous.
    """

    granularity: tuple[int, int, int] = (1, 128, 128)
    a_scale_layout: str = "K"
    b_scale_layout: str = "K"
