"""Reduce-scatter over MPI: every rank receives its part of each message and reduces it in rank order."""

from __future__ import annotations

import torch

from warploom.comm.backends.mpi.support import support
from warploom.comm.backends.reference.gather import as_bytes
from warploom.comm.communicator import Communicator
from warploom.comm.problems.reduce_scatter import ReduceScatterProblem
from warploom.comm.reduction import reduce_in_rank_order
from warploom.core.backends import Backend, Support

__all__ = ["MpiReduceScatter", "scatter_and_reduce"]


def scatter_and_reduce(comm: Communicator, parts: torch.Tensor, op: str) -> torch.Tensor:
    """Send ``parts[r]`` to rank r and reduce what arrives; returns ``[*parts.shape[1:]]``."""
    received = torch.empty_like(parts)
    counts = [parts[0].nbytes] * comm.size
    comm.transport.all_to_all(as_bytes(received), as_bytes(parts), counts, counts)
    return reduce_in_rank_order(received, op)


class MpiReduceScatter(Backend):
    """CPU tensors."""

    name = "mpi"

    def supports(self, problem: ReduceScatterProblem) -> Support:
        return support(problem)

    def run(self, problem: ReduceScatterProblem, comm: Communicator, out: torch.Tensor, x: torch.Tensor) -> None:
        out.copy_(scatter_and_reduce(comm, x.view(comm.size, *out.shape), problem.op))
