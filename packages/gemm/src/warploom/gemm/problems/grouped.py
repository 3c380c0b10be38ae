"""What decides who computes a grouped product: rows of `a` in consecutive groups, each with its own matrix of `b`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from warploom.core.problem import Problem

__all__ = ["GroupedProblem", "GroupedScaledProblem"]


@dataclass(frozen=True, kw_only=True)
class GroupedProblem(Problem):
    """``out[rows of g] = a[rows of g, k] @ b[g, n, k].T`` for `groups` groups whose sizes only the device knows.

    Attributes
    ----------
    rows : int
        The most that all groups may have together.
    gathers : bool
        Indices say which rows of `a` these are.
    dtype, out_dtype : torch.dtype
        Of both operands, and of the output.
    """

    untuned = frozenset(("gathers",))

    rows: int
    n: int
    k: int
    groups: int
    dtype: torch.dtype
    out_dtype: torch.dtype
    gathers: bool = False


@dataclass(frozen=True, kw_only=True)
class GroupedScaledProblem(Problem):
    """`GroupedProblem` of fp8 operands with a scale for each row of `a` and each row of ``b[g]``."""

    untuned = frozenset(("gathers",))

    rows: int
    n: int
    k: int
    groups: int
    a_dtype: torch.dtype
    b_dtype: torch.dtype
    out_dtype: torch.dtype
    gathers: bool = False
