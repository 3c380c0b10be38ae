"""All-to-all through NCCL."""

from __future__ import annotations

import torch

from warploom.comm.backends.nccl.support import support
from warploom.comm.backends.reference.gather import as_bytes
from warploom.comm.communicator import Communicator
from warploom.comm.problems.all_to_all import AllToAllProblem
from warploom.core.backends import Backend, Support

__all__ = ["NcclAllToAll"]


class NcclAllToAll(Backend):
    """GPU tensors of any dtype: rows travel as bytes."""

    name = "nccl"
    needs_gpu = True

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
        if comm.size == 1:
            out.copy_(x)
        elif problem.row_bytes:
            shape = (-1, problem.row_bytes)
            comm.nccl().all_to_all(as_bytes(out).view(shape), as_bytes(x).view(shape), received, sent)
