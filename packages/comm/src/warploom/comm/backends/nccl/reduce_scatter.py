"""Reduce-scatter through NCCL."""

from __future__ import annotations

import torch

from warploom.comm.backends.nccl.support import reduce_support
from warploom.comm.communicator import Communicator
from warploom.comm.problems.reduce_scatter import ReduceScatterProblem
from warploom.core.backends import Backend, Support

__all__ = ["NcclReduceScatter"]


class NcclReduceScatter(Backend):
    """Any size and any number of hosts. NCCL chooses the order of additions and rounds 16-bit sums at every hop."""

    name = "nccl"
    needs_gpu = True

    def supports(self, problem: ReduceScatterProblem) -> Support:
        return reduce_support(problem, problem.dtype, problem.op)

    def run(self, problem: ReduceScatterProblem, comm: Communicator, out: torch.Tensor, x: torch.Tensor) -> None:
        if comm.size == 1:
            out.copy_(x)
        elif x.numel():
            comm.nccl().reduce_scatter(out, x, problem.op)
