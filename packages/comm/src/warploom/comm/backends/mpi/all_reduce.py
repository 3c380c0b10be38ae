"""All-reduce over MPI with a fixed order of additions, which MPI_Allreduce does not promise."""

from __future__ import annotations

import torch

from warploom.comm.backends.mpi.reduce_scatter import scatter_and_reduce
from warploom.comm.backends.mpi.support import support
from warploom.comm.backends.reference.gather import as_bytes, gather
from warploom.comm.communicator import Communicator
from warploom.comm.problems.all_reduce import AllReduceProblem
from warploom.comm.reduction import reduce_in_rank_order
from warploom.core.backends import Backend, Support

__all__ = ["MpiAllReduce"]

_ONE_TRIP_BYTES = 64 << 10  # below, the second trip costs more than the traffic it saves


class MpiAllReduce(Backend):
    """CPU tensors; each rank reduces one part and the parts are gathered."""

    name = "mpi"

    def supports(self, problem: AllReduceProblem) -> Support:
        return support(problem)

    def run(self, problem: AllReduceProblem, comm: Communicator, out: torch.Tensor, x: torch.Tensor) -> None:
        if problem.nbytes <= _ONE_TRIP_BYTES or comm.size == 1:
            out.copy_(reduce_in_rank_order(gather(comm, x), problem.op))
            return
        part = -(-x.numel() // comm.size)
        padded = x.new_zeros(comm.size, part)
        padded.view(-1)[: x.numel()] = x.view(-1)
        reduced = scatter_and_reduce(comm, padded, problem.op)
        comm.transport.all_gather(as_bytes(padded), as_bytes(reduced))
        out.view(-1).copy_(padded.view(-1)[: x.numel()])
