"""All-gather in plain torch."""

from __future__ import annotations

import torch

from warploom.comm.backends.reference.gather import gather, support
from warploom.comm.communicator import Communicator
from warploom.comm.problems.all_gather import AllGatherProblem
from warploom.core.backends import Backend, Support

__all__ = ["ReferenceAllGather"]


class ReferenceAllGather(Backend):
    """Any device, any number of ranks. All backends fill ``out [size, *x.shape]``."""

    name = "reference"

    def supports(self, problem: AllGatherProblem) -> Support:
        return support(problem)

    def run(self, problem: AllGatherProblem, comm: Communicator, out: torch.Tensor, x: torch.Tensor) -> None:
        out.copy_(gather(comm, x))
