"""One process, or the ranks of an ``mpirun``: what the harness needs to keep them in step."""

from __future__ import annotations

import os
from typing import Any

__all__ = ["Ranks", "current_ranks"]


class Ranks:
    """A single process; the base of `_MpiRanks`."""

    rank = 0
    size = 1

    def barrier(self) -> None:
        """Wait for all ranks."""

    def max(self, value: float) -> float:
        """Return the largest of the ranks' values. A collective's time is that of its slowest rank."""
        return value


class _MpiRanks(Ranks):
    def __init__(self) -> None:
        from mpi4py import MPI

        self._max = MPI.MAX
        self._comm: Any = MPI.COMM_WORLD
        self.rank, self.size = self._comm.rank, self._comm.size

    def barrier(self) -> None:
        self._comm.Barrier()

    def max(self, value: float) -> float:
        return self._comm.allreduce(value, op=self._max)


def current_ranks() -> Ranks:
    """Return the ranks of this ``mpirun``, or a single one outside; mpi4py is not imported in the latter case."""
    launched = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK")
    if any(name in os.environ for name in launched):
        return _MpiRanks()
    return Ranks()
