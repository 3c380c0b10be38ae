"""All-reduce in plain torch: gather every message, reduce in rank order."""

from __future__ import annotations

import torch

from warploom.comm.backends.reference.gather import gather, support
from warploom.comm.communicator import Communicator
from warploom.comm.problems.all_reduce import AllReduceProblem
from warploom.comm.reduction import reduce_in_rank_order
from warploom.core.backends import Backend, Support

__all__ = ["ReferenceAllReduce"]


class ReferenceAllReduce(Backend):
    """Any device, any op, any number of ranks."""

    name = "reference"

    def supports(self, problem: AllReduceProblem) -> Support:
        return support(problem)

    def run(self, problem: AllReduceProblem, comm: Communicator, out: torch.Tensor, x: torch.Tensor) -> None:
        out.copy_(reduce_in_rank_order(gather(comm, x), problem.op))
