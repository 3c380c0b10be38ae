"""`all_to_all`: every rank sends some of its rows to every rank."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch

from warploom.comm.backends.exchange.all_to_all import ExchangeAllToAll
from warploom.comm.backends.mpi.all_to_all import MpiAllToAll
from warploom.comm.backends.nccl.all_to_all import NcclAllToAll
from warploom.comm.backends.reference.all_to_all import ReferenceAllToAll
from warploom.comm.collective import RepeatedCollective, check_comm, run_into
from warploom.comm.communicator import Communicator
from warploom.comm.handles import find
from warploom.comm.problems.all_to_all import AllToAllProblem
from warploom.comm.repeated import call_key, keep_call
from warploom.core.backends import Backend, Operator
from warploom.core.errors import CommunicationError
from warploom.core.tensors import Checker
from warploom.core.torch_ops import register_op

__all__ = ["ALL_TO_ALL", "all_to_all"]

ALL_TO_ALL = Operator(
    "all_to_all",
    family="comm",
    backends=(ExchangeAllToAll(), NcclAllToAll(), MpiAllToAll(), ReferenceAllToAll()),
)


def all_to_all(
    x: torch.Tensor,
    comm: Communicator,
    output_split_sizes: Sequence[int] | None = None,
    input_split_sizes: Sequence[int] | None = None,
    out: torch.Tensor | None = None,
    *,
    backend: str = "auto",
) -> torch.Tensor:
    """Send rows of a tensor to every rank and receive rows from every rank.

    Parameters
    ----------
    x : torch.Tensor
        ``[rows, ...]`` of any dtype: first the rows for rank 0, then those for rank 1, and so on.
    comm : Communicator
        The ranks. Every rank calls the same operators in the same order.
    output_split_sizes : sequence of int, optional
        Rows to receive from each rank; what that rank's `input_split_sizes` say for this one. Default: equal parts.
    input_split_sizes : sequence of int, optional
        Rows to send to each rank, summing to ``rows``. Default: equal parts.
    out : torch.Tensor, optional
        ``[sum(output_split_sizes), ...]``, receives the rows in the order of their senders. It must not overlap `x`.
    backend : str
        "auto", "nccl", "exchange", "mpi" or "reference".

    Returns
    -------
    torch.Tensor
        The received rows; `out` if it was given.

    Raises
    ------
    ArgumentError, UnsupportedError, CommunicationError
        As in `all_reduce`.

    Examples
    --------
    >>> import torch
    >>> from warploom.comm import Communicator, all_to_all
    >>> comm = Communicator.single("cpu")
    >>> all_to_all(torch.arange(4), comm)
    tensor([0, 1, 2, 3])
    """
    key = _key(x, comm, output_split_sizes, input_split_sizes, out, backend)
    known = None if key is None else comm.repeated.get(key)
    if isinstance(known, RepeatedAllToAll):
        out = x.new_empty(known.shape) if out is None else out
        known.fill(comm, out, x, known.received, known.sent)
        return out
    check = Checker("all_to_all")
    x = check.tensor("x", x, "* first")
    comm = check_comm(check, comm)
    sent = _splits(check, comm, "input_split_sizes", input_split_sizes, x.shape[0])
    total = x.shape[0] if output_split_sizes is None else sum(output_split_sizes)
    received = _splits(check, comm, "output_split_sizes", output_split_sizes, total)
    out = check.output("out", out, (total, *x.shape[1:]), x.dtype)
    _run(out, x, comm.handle, received, sent, backend)
    if key is not None:
        problem = AllToAllProblem.describe(comm, x)
        keep_call(key, comm, RepeatedAllToAll, ALL_TO_ALL, problem, backend, comm, out, x, received, sent)
    return out


class RepeatedAllToAll(RepeatedCollective):
    """Knows how many rows go where."""

    def __init__(
        self, operator: Operator, problem: AllToAllProblem, backend: str, comm: Communicator, out: torch.Tensor,
        x: torch.Tensor, received: list[int], sent: list[int],
    ) -> None:  # fmt: skip
        super().__init__(operator, problem, backend, comm, out, x, received, sent)
        self.received, self.sent = received, sent


def _key(x: Any, comm: Any, received: Any, sent: Any, out: Any, backend: Any) -> Hashable | None:
    """`call_key` of what a caller gave, none of it checked; None for row counts that are no plain numbers."""
    counts: list[tuple[int, ...] | None] = []
    for sizes in (received, sent):
        if sizes is not None and (type(sizes) not in (list, tuple) or set(map(type, sizes)) != {int}):
            return None
        counts.append(None if sizes is None else tuple(sizes))
    return call_key(ALL_TO_ALL, comm, x, out, backend, *counts)


def _splits(check: Checker, comm: Communicator, name: str, sizes: Sequence[int] | None, rows: int) -> list[int]:
    """The given row counts, checked, or equal parts."""
    if sizes is None:
        check.require(rows % comm.size == 0, "x", f"of a first dimension divisible by the {comm.size} ranks", rows,
                      f"Give {name} for unequal parts.")  # fmt: skip
        return [rows // comm.size] * comm.size
    fits = len(sizes) == comm.size and all(size >= 0 for size in sizes) and sum(sizes) == rows
    check.require(fits, name, f"{comm.size} row counts with the sum {rows}", list(sizes))
    return list(sizes)


@register_op("all_to_all(Tensor(a!) out, Tensor x, int comm, int[] received, int[] sent, str backend) -> ()")
def _run(out: torch.Tensor, x: torch.Tensor, comm: int, received: list[int], sent: list[int], backend: str) -> None:
    communicator = find(comm, "all_to_all")
    problem = AllToAllProblem.describe(communicator, x)
    _agree(communicator, x, list(received), list(sent), backend)

    def run(chosen: Backend, buffer: torch.Tensor) -> None:
        chosen.run(problem, communicator, buffer, x.contiguous(), list(received), list(sent))

    run_into(ALL_TO_ALL, problem, backend, out, run)


def _agree(comm: Communicator, x: torch.Tensor, received: list[int], sent: list[int], backend: str) -> None:
    """Raise on every rank if rows differ, or if a rank expects other row counts than are sent to it."""
    terms = ((str(x.dtype), list(x.shape[1:]), backend), received, sent)
    everyone = comm.agree("all_to_all", terms, always=not x.is_cuda)
    if all(other is terms for other in everyone):
        return
    problems = [
        f"rank {i} sends {other[2][j]} rows to rank {j}, which expects {everyone[j][1][i]}"
        for i, other in enumerate(everyone)
        for j in range(comm.size)
        if other[2][j] != everyone[j][1][i]
    ]
    if any(other[0] != everyone[0][0] for other in everyone):
        problems.append(f"rows differ: {dict(enumerate(other[0] for other in everyone))}")
    if problems:
        raise CommunicationError(f"rank {comm.rank}: {comm.transport.activity}: ranks disagree: {'; '.join(problems)}")
