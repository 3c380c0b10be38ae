"""When MPI can serve a collective."""

from __future__ import annotations

from warploom.comm.problems.base import CommProblem
from warploom.core.backends import Support

__all__ = ["support"]


def support(problem: CommProblem) -> Support:
    """CPU tensors of a communicator made from MPI ranks; a copy for one rank needs none."""
    return Support.of(
        (problem.device_type == "cpu", "takes CPU tensors"),
        (problem.transport == "mpi" or problem.size == 1, f"the communicator's transport is {problem.transport}"),
    )
