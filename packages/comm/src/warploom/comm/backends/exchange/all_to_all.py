"""All-to-all over peer memory: our kernel, any splits of any size."""

from __future__ import annotations

from collections.abc import Callable

import torch

from warploom.comm.backends.peer_exchange import PeerExchange, all_to_all_params, offsets
from warploom.comm.communicator import Communicator
from warploom.comm.problems.all_to_all import AllToAllProblem

__all__ = ["ExchangeAllToAll"]


class ExchangeAllToAll(PeerExchange):
    """One launch, no host in between; rows of any dtype."""

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
        elif problem.row_bytes:  # the same on all ranks, unlike the number of rows
            self.exchange(comm, all_to_all_params(out, x, received, sent, problem.row_bytes))

    def bind(
        self,
        problem: AllToAllProblem,
        comm: Communicator,
        out: torch.Tensor,
        x: torch.Tensor,
        received: list[int],
        sent: list[int],
    ) -> Callable[..., None]:
        if comm.size == 1 or not problem.row_bytes:
            return super().bind(problem)
        exchange_at = self.prepare(comm, all_to_all_params(out, x, received, sent, problem.row_bytes))
        of_inputs, of_outputs = (offsets([problem.row_bytes * rows for rows in counts]) for counts in (sent, received))

        def run(comm: Communicator, out: torch.Tensor, x: torch.Tensor, received: list[int], sent: list[int]) -> None:
            first_in, first_out = x.data_ptr(), out.data_ptr()
            exchange_at([first_in + offset for offset in of_inputs], [first_out + offset for offset in of_outputs])

        return run
