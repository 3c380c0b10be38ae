"""When NCCL can serve a collective."""

from __future__ import annotations

import torch

from warploom.comm.problems.base import CommProblem
from warploom.core.backends import Support

__all__ = ["reduce_support", "support"]


def support(problem: CommProblem) -> Support:
    """Ranks that have an NCCL group or can make one; a copy for one rank needs none."""
    return Support.of((not problem.no_nccl, problem.no_nccl))


def reduce_support(problem: CommProblem, dtype: torch.dtype, op: str) -> Support:
    """`support`, and averages of floating-point numbers only."""
    return support(problem) & Support.of(
        (
            op != "avg" or dtype.is_floating_point,
            f"averages floating-point numbers, not {str(dtype).removeprefix('torch.')}",
        )
    )
