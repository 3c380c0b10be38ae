"""All-reduce through NCCL."""

from __future__ import annotations

import torch

from warploom.comm.backends.nccl.support import reduce_support
from warploom.comm.communicator import Communicator
from warploom.comm.problems.all_reduce import AllReduceProblem
from warploom.core.backends import Backend, Support

__all__ = ["NcclAllReduce"]


class NcclAllReduce(Backend):
    """Any size and any number of hosts. NCCL chooses the order of additions and rounds 16-bit sums at every hop."""

    name = "nccl"
    needs_gpu = True

    def supports(self, problem: AllReduceProblem) -> Support:
        return reduce_support(problem, problem.dtype, problem.op)

    def run(self, problem: AllReduceProblem, comm: Communicator, out: torch.Tensor, x: torch.Tensor) -> None:
        if out.data_ptr() != x.data_ptr():
            out.copy_(x)
        if comm.size > 1 and out.numel():
            comm.nccl().all_reduce(out, problem.op)
