"""Dispatches of `MoeAlltoAll` that differ from an earlier one in nothing but where their tensors begin."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch

from warploom.comm.communicator import Communicator
from warploom.comm.landing import Landing
from warploom.comm.problems.moe_all_to_all import DispatchTensors, MoeDispatchProblem
from warploom.comm.repeated import RepeatedCall, call_key
from warploom.core.backends import Operator

__all__ = ["RepeatedDispatch", "moe_key"]


def moe_key(
    operator: Operator, comm: Communicator, landing: Landing | None, limits: tuple[Any, ...], x: Any, *arguments: Any,
    payloads: Any = (),
) -> Hashable | None:  # fmt: skip
    """`call_key` of what a caller gave, none of it checked; None without symmetric memory for the rows.

    Parameters
    ----------
    limits : tuple
        What the object was made with.
    """
    if landing is None or type(payloads) not in (list, tuple):
        return None
    key = call_key(operator, comm, x, *arguments, *payloads)
    # Tensors made in inference mode serve no other.
    return None if key is None else (key, landing.handle, limits, torch.is_inference_mode_enabled())


class RepeatedDispatch(RepeatedCall):
    """Has the views of the memory where rows land. It goes with the communicator's memory of calls, so before that memory.

    Parameters
    ----------
    operator, problem, backend, comm
        As of `RepeatedCall`.
    tensors : DispatchTensors
        What the backend ran with.
    """

    def __init__(
        self,
        operator: Operator,
        problem: MoeDispatchProblem,
        backend: str,
        comm: Communicator,
        tensors: DispatchTensors,
    ) -> None:
        super().__init__(operator, problem, backend, comm, tensors)
        self._received = [tensor.detach() for tensor in tensors.received]
        self._shapes = tensors.counts.shape, tensors.slots.shape

    def dispatch(
        self, comm: Communicator, experts: torch.Tensor, payloads: Sequence[torch.Tensor], landing: Landing
    ) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
        """The received rows, their numbers and the slots of what a caller gave."""
        # What is handed out may be changed in place, and have a history then: never twice the same tensor.
        received = [tensor.detach() for tensor in self._received]
        # New memory, also for numbers: it belongs to the stream and to the graph that use it.
        counts, slots = (experts.new_empty(shape, dtype=torch.int32) for shape in self._shapes)
        self.run(comm, DispatchTensors(received, counts, slots, experts, payloads, landing))
        return received, counts, slots
