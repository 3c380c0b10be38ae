"""`reduce_scatter`: reduce over ranks, keep one part on each."""

from __future__ import annotations

import torch

from warploom.comm.backends.mpi.reduce_scatter import MpiReduceScatter
from warploom.comm.backends.nccl.reduce_scatter import NcclReduceScatter
from warploom.comm.backends.oneshot.reduce_scatter import OneShotReduceScatter
from warploom.comm.backends.reference.reduce_scatter import ReferenceReduceScatter
from warploom.comm.collective import RepeatedCollective, agree_on, check_choice, check_comm, run_into
from warploom.comm.communicator import Communicator
from warploom.comm.handles import find
from warploom.comm.problems.reduce_scatter import ReduceScatterProblem
from warploom.comm.reduction import REDUCE_DTYPES, REDUCE_OPS
from warploom.comm.repeated import call_key, keep_call
from warploom.core.backends import Backend, Operator
from warploom.core.tensors import Checker
from warploom.core.torch_ops import register_op

__all__ = ["REDUCE_SCATTER", "reduce_scatter"]

REDUCE_SCATTER = Operator(
    "reduce_scatter",
    family="comm",
    backends=(OneShotReduceScatter(), NcclReduceScatter(), MpiReduceScatter(), ReferenceReduceScatter()),
)


def reduce_scatter(
    x: torch.Tensor, comm: Communicator, op: str = "sum", out: torch.Tensor | None = None, *, backend: str = "auto"
) -> torch.Tensor:
    """Reduce a tensor over all ranks and keep this rank's equal part of its first dimension.

    Parameters
    ----------
    x : torch.Tensor
        ``[size * n, ...]`` with the same shape and dtype on every rank; dtypes as in `all_reduce`.
    comm : Communicator
        The ranks. Every rank calls the same operators in the same order.
    op : {"sum", "avg", "max", "min"}
        The reduction.
    out : torch.Tensor, optional
        ``[n, ...]``, receives the result. It may be this rank's part of `x`.
    backend : str
        "auto", "nccl", "oneshot", "mpi" or "reference". All but "nccl" add in rank order.

    Returns
    -------
    torch.Tensor
        Rows ``rank * n`` to ``(rank + 1) * n`` of the reduced tensor; `out` if it was given.

    Raises
    ------
    ArgumentError, UnsupportedError, CommunicationError
        As in `all_reduce`.

    Examples
    --------
    >>> import torch
    >>> from warploom.comm import Communicator, reduce_scatter
    >>> comm = Communicator.single("cpu")
    >>> reduce_scatter(torch.ones(2, 3), comm).shape
    torch.Size([2, 3])
    """
    key = call_key(REDUCE_SCATTER, comm, x, out, op, backend)
    known = None if key is None else comm.repeated.get(key)
    if isinstance(known, RepeatedCollective):
        out = x.new_empty(x.shape[0] // comm.size, *x.shape[1:]) if out is None else out
        known.fill(comm, out, x)
        return out
    check = Checker("reduce_scatter")
    x = check.tensor("x", x, "* first", dtype=REDUCE_DTYPES)
    comm = check_comm(check, comm)
    check_choice(check, "op", op, REDUCE_OPS)
    rows = x.shape[0]
    check.require(rows % comm.size == 0, "x", f"of a first dimension divisible by the {comm.size} ranks", rows)
    out = check.output("out", out, (rows // comm.size, *x.shape[1:]), x.dtype)
    _run(out, x, comm.handle, op, backend)
    if key is not None:
        problem = ReduceScatterProblem.describe(comm, x, op)
        keep_call(key, comm, RepeatedCollective, REDUCE_SCATTER, problem, backend, comm, out, x)
    return out


@register_op("reduce_scatter(Tensor(a!) out, Tensor x, int comm, str op, str backend) -> ()")
def _run(out: torch.Tensor, x: torch.Tensor, comm: int, op: str, backend: str) -> None:
    communicator = find(comm, "reduce_scatter")
    problem = ReduceScatterProblem.describe(communicator, x, op)
    agree_on(communicator, "reduce_scatter", (op, str(x.dtype), tuple(x.shape), backend), not x.is_cuda)

    def run(chosen: Backend, buffer: torch.Tensor) -> None:
        chosen.run(problem, communicator, buffer, x.contiguous())

    run_into(REDUCE_SCATTER, problem, backend, out, run)
