"""All-gather over MPI."""

from __future__ import annotations

import torch

from warploom.comm.backends.mpi.support import support
from warploom.comm.backends.reference.gather import as_bytes
from warploom.comm.communicator import Communicator
from warploom.comm.problems.all_gather import AllGatherProblem
from warploom.core.backends import Backend, Support

__all__ = ["MpiAllGather"]


class MpiAllGather(Backend):
    """CPU tensors, received where they belong."""

    name = "mpi"

    def supports(self, problem: AllGatherProblem) -> Support:
        return support(problem)

    def run(self, problem: AllGatherProblem, comm: Communicator, out: torch.Tensor, x: torch.Tensor) -> None:
        comm.transport.all_gather(as_bytes(out), as_bytes(x))
