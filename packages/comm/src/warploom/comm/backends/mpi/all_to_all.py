"""All-to-all over MPI."""

from __future__ import annotations

import torch

from warploom.comm.backends.mpi.support import support
from warploom.comm.backends.reference.gather import as_bytes
from warploom.comm.communicator import Communicator
from warploom.comm.problems.all_to_all import AllToAllProblem
from warploom.core.backends import Backend, Support

__all__ = ["MpiAllToAll"]


class MpiAllToAll(Backend):
    """CPU tensors, received where they belong."""

    name = "mpi"

    def supports(self, problem: AllToAllProblem) -> Support:
        return support(problem)

    def run(
        self,
        problem: AllToAllProblem,
        comm: Communicator,
        out: torch.Tensor,
        x: torch.Tensor,
        received: list[int],
        sent: list[int],
    ) -> None:
        row = problem.row_bytes
        comm.transport.all_to_all(as_bytes(out), as_bytes(x), [n * row for n in received], [n * row for n in sent])
