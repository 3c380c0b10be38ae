"""All-to-all in plain torch: gather everything, keep what is addressed to this rank."""

from __future__ import annotations

import torch

from warploom.comm.backends.reference.gather import gather_ragged, support
from warploom.comm.communicator import Communicator
from warploom.comm.problems.all_to_all import AllToAllProblem
from warploom.core.backends import Backend, Support

__all__ = ["ReferenceAllToAll"]


class ReferenceAllToAll(Backend):
    """Any device, any number of ranks. All backends take contiguous rows and the row counts of each rank."""

    name = "reference"

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
        everyone = gather_ragged(comm, x)
        splits = comm.transport.exchange_objects(sent)
        torch.cat([rows.split(counts)[comm.rank] for rows, counts in zip(everyone, splits, strict=True)], out=out)
