"""What all collectives share: checks of the communicator, and the way from a described problem to a backend's run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from warploom.comm.communicator import Communicator
from warploom.comm.problems.base import CommProblem
from warploom.comm.repeated import RepeatedCall
from warploom.core.backends import Backend, Operator
from warploom.core.device import device_guard
from warploom.core.errors import CommunicationError
from warploom.core.tensors import Checker

__all__ = ["RepeatedCollective", "agree_on", "check_choice", "check_comm", "dense", "run_into"]


def check_comm(check: Checker, comm: Any) -> Communicator:
    """Require a communicator, and tensors on its GPU or on the CPU."""
    check.require(isinstance(comm, Communicator), "comm", "a warploom.comm.Communicator", type(comm).__name__)
    device = check.device
    if device is not None and device.type == "cuda":
        check.require(
            device == comm.device, "comm", f"a communicator on {device}, where the tensors are", f"one on {comm.device}"
        )
    return comm


def check_choice(check: Checker, name: str, value: str, choices: tuple[str, ...]) -> None:
    """Require one of several names."""
    check.require(value in choices, name, f"one of {', '.join(map(repr, choices))}", repr(value))


def agree_on(comm: Communicator, op: str, terms: Any, on_cpu: bool) -> None:
    """Raise on every rank if the ranks call with different terms: always for CPU tensors, else with debug checks on."""
    everyone = comm.agree(op, terms, always=on_cpu)
    if any(other != everyone[0] for other in everyone):
        table = "; ".join(f"rank {rank}: {other}" for rank, other in enumerate(everyone))
        raise CommunicationError(f"rank {comm.rank}: {comm.transport.activity}: ranks disagree: {table}")


def dense(x: torch.Tensor) -> torch.Tensor:
    """The tensor itself if it is contiguous, else new contiguous memory of its shape (not its values)."""
    return x if x.is_contiguous() else torch.empty_like(x, memory_format=torch.contiguous_format)


def run_into(
    operator: Operator,
    problem: CommProblem,
    backend: str,
    out: torch.Tensor,
    run: Callable[[Backend, torch.Tensor], None],
) -> None:
    """Select a backend and let `run` fill contiguous memory for `out`.

    Parameters
    ----------
    run : callable
        ``run(backend, buffer)`` writes the result to `buffer`, which is `out` itself where its strides allow.
    """
    chosen = operator.select(problem, backend).backend
    with device_guard(out):
        buffer = dense(out)
        run(chosen, buffer)
        if buffer is not out:
            out.copy_(buffer)


class RepeatedCollective(RepeatedCall):
    """Of operators that fill one tensor from another, and whatever else their backends take."""

    def __init__(
        self,
        operator: Operator,
        problem: CommProblem,
        backend: str,
        comm: Communicator,
        out: torch.Tensor,
        x: torch.Tensor,
        *more: Any,
    ) -> None:
        self.shape = out.shape
        self._is_dense = out.is_contiguous() and x.is_contiguous()
        super().__init__(operator, problem, backend, comm, dense(out), dense(x), *more)

    def fill(self, comm: Communicator, out: torch.Tensor, x: torch.Tensor, *more: Any) -> None:
        """What `run_into` does."""
        if self._is_dense:
            self.run(comm, out, x, *more)
            return
        buffer = dense(out)
        self.run(comm, buffer, x.contiguous(), *more)
        if buffer is not out:
            out.copy_(buffer)
