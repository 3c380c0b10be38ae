"""Requests to pack masks."""

from __future__ import annotations

from dataclasses import dataclass

from warploom.core.problem import Problem


@dataclass(frozen=True, kw_only=True)
class PackProblem(Problem):
    """Booleans to be packed eight to a byte, as one run or by segments that each start at a byte."""

    bitorder: str  # "big" or "little"
    segmented: bool
