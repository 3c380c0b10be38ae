"""Reduce-scatter in plain torch: gather every message, reduce this rank's part in rank order."""

from __future__ import annotations

import torch

from warploom.comm.backends.reference.gather import gather, support
from warploom.comm.communicator import Communicator
from warploom.comm.problems.reduce_scatter import ReduceScatterProblem
from warploom.comm.reduction import reduce_in_rank_order
from warploom.core.backends import Backend, Support

__all__ = ["ReferenceReduceScatter"]


class ReferenceReduceScatter(Backend):
    """Any device, any op, any number of ranks."""

    name = "reference"

    def supports(self, problem: ReduceScatterProblem) -> Support:
        return support(problem)

    def run(self, problem: ReduceScatterProblem, comm: Communicator, out: torch.Tensor, x: torch.Tensor) -> None:
        rows = out.shape[0]
        parts = gather(comm, x)[:, comm.rank * rows : (comm.rank + 1) * rows]
        out.copy_(reduce_in_rank_order(parts, problem.op))
