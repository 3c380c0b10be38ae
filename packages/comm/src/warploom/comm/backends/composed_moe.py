"""Expert-parallel dispatch and combine as an all-to-all of equal parts, for every backend of all-to-all."""

from __future__ import annotations

from typing import ClassVar

import torch

from warploom.comm.communicator import Communicator
from warploom.comm.problems.all_to_all import AllToAllProblem
from warploom.comm.problems.moe_all_to_all import DispatchTensors, MoeCombineProblem, MoeDispatchProblem, RowPlaces
from warploom.comm.routing import collect, rank_slots, scatter_to_ranks
from warploom.core.backends import Backend, Support

__all__ = ["ComposedCombine", "ComposedDispatch"]


class _Composed(Backend):
    """Base: supports what its all-to-all supports. Parts of equal size need no counts on the host.

    Attributes
    ----------
    all_to_all : Backend
        The backend of `ALL_TO_ALL` that moves the rows.
    """

    all_to_all: ClassVar[Backend]

    def supports(self, problem: MoeDispatchProblem | MoeCombineProblem) -> Support:
        return self.all_to_all.check(problem)

    def exchange(self, comm: Communicator, out: torch.Tensor, x: torch.Tensor) -> None:
        """Swap the parts of ``x [size, rows, ...]`` between the ranks."""
        flat_out, flat_x = out.flatten(0, 1), x.flatten(0, 1)
        rows = [x.shape[1]] * comm.size
        self.all_to_all.run(AllToAllProblem.describe(comm, flat_x), comm, flat_out, flat_x, rows, rows)


class ComposedDispatch(_Composed):
    """Tokens to the ranks of their experts."""

    def run(self, problem: MoeDispatchProblem, comm: Communicator, tensors: DispatchTensors) -> None:
        """Fill what is received, the counts and the slots."""
        slots = tensors.slots
        slots.copy_(rank_slots(tensors.experts, problem.num_experts, comm.size))
        sent = (slots >= 0).sum(0, dtype=torch.int32)
        self.exchange(comm, tensors.counts.view(-1, 1), sent.view(-1, 1))
        for out, payload in zip(tensors.received, tensors.payloads, strict=True):
            self.exchange(comm, out, scatter_to_ranks(payload, slots, problem.max_tokens))


class ComposedCombine(_Composed):
    """Results back to the ranks of their tokens, and their sum."""

    def run(
        self,
        problem: MoeCombineProblem,
        comm: Communicator,
        out: torch.Tensor,
        payload: torch.Tensor,
        places: RowPlaces,
    ) -> None:
        """Fill ``out [tokens, hidden]`` from ``payload [size, max_tokens, hidden]``.

        Parts have equal sizes here, whatever the dispatch's counts say.
        """
        returned = torch.empty_like(payload)
        self.exchange(comm, returned, payload)
        out.copy_(collect(returned, places.slots))
