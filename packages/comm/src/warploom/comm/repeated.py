"""Calls on GPUs that differ from an earlier one in nothing but where their tensors begin.

A model makes the same few collectives in every layer. What was checked, described, chosen and prepared for the first of
them serves the others, which skip torch's dispatcher too, since nothing looks at them. What may change between two such
calls is asked each time: whether the communicator is open and well, and which stream is current.

Every rank keeps its own calls, and yet all choose alike: whatever a choice depends on is in the key or, like the making of
an NCCL group, empties the store. So a call that is known is served as it would be if it were not.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch

from warploom.comm.communicator import Communicator
from warploom.comm.problems.base import CommProblem
from warploom.core.backends import Operator
from warploom.core.calls import layout_key
from warploom.core.settings import settings

__all__ = ["RepeatedCall", "call_key", "keep_call"]


def call_key(operator: Operator, comm: Any, x: Any, *arguments: Any) -> Hashable | None:
    """What a call is known by in `Communicator.repeated`; None if it has to be looked at.

    Parameters
    ----------
    comm, x
        The communicator and the tensor to send, neither of them checked.
    *arguments
        All else that the call was given.
    """
    if torch.compiler.is_compiling() or not isinstance(comm, Communicator) or not isinstance(x, torch.Tensor):
        return None
    if not x.is_cuda or torch._C._len_torch_dispatch_stack() or torch._C._cuda_getDevice() != comm.device.index:
        return None
    if torch.is_grad_enabled():
        for value in (x, *arguments):
            if isinstance(value, torch.Tensor) and value.requires_grad:
                return None
    layout = layout_key(x, *arguments)
    if layout is None:
        return None
    capturing = torch.cuda.is_current_stream_capturing()
    return operator.name, operator.generation, capturing, settings.key("backend", "debug_checks"), layout


class RepeatedCall:
    """How the calls of a key are served.

    Parameters
    ----------
    operator, problem, backend
        What the first of them was.
    comm, *args
        What its backend ran with. Nothing of them is kept.
    """

    def __init__(self, operator: Operator, problem: CommProblem, backend: str, comm: Communicator, *args: Any) -> None:
        self._operator = operator
        self._selection = operator.select(problem, backend)
        self._bound = self._selection.backend.bind(problem, comm, *args)

    def run(self, comm: Communicator, *args: Any) -> None:
        """Run with tensors that lie as the first call's did.

        Raises
        ------
        CommunicationError
            The communicator is closed or failed.
        """
        comm.enter(self._operator.name)
        self._operator.last = self._selection
        self._bound(comm, *args)


def keep_call(key: Hashable | None, comm: Communicator, call: type[RepeatedCall], *args: Any) -> None:
    """Keep a call that went well; none without a key, or if every call is to be looked at."""
    if key is not None and not settings.debug_checks:
        comm.repeated.keep(key, call(*args))
