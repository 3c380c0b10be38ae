"""`all_reduce`: the sum, average, maximum or minimum over ranks, on every rank."""

from __future__ import annotations

import torch

from warploom.comm.backends.mpi.all_reduce import MpiAllReduce
from warploom.comm.backends.nccl.all_reduce import NcclAllReduce
from warploom.comm.backends.oneshot.all_reduce import OneShotAllReduce
from warploom.comm.backends.reference.all_reduce import ReferenceAllReduce
from warploom.comm.backends.twoshot.all_reduce import TwoShotAllReduce
from warploom.comm.collective import RepeatedCollective, agree_on, check_choice, check_comm, run_into
from warploom.comm.communicator import Communicator
from warploom.comm.handles import find
from warploom.comm.problems.all_reduce import AllReduceProblem
from warploom.comm.reduction import REDUCE_DTYPES, REDUCE_OPS
from warploom.comm.repeated import call_key, keep_call
from warploom.core.backends import Backend, Operator
from warploom.core.tensors import Checker
from warploom.core.torch_ops import register_op

__all__ = ["ALL_REDUCE", "all_reduce"]

ALL_REDUCE = Operator(
    "all_reduce",
    family="comm",
    backends=(OneShotAllReduce(), TwoShotAllReduce(), NcclAllReduce(), MpiAllReduce(), ReferenceAllReduce()),
)


def all_reduce(
    x: torch.Tensor, comm: Communicator, op: str = "sum", out: torch.Tensor | None = None, *, backend: str = "auto"
) -> torch.Tensor:
    """Reduce a tensor over all ranks; every rank gets the result.

    Parameters
    ----------
    x : torch.Tensor
        Any shape and strides; float32, float16, bfloat16 (accumulated in float32), float64 or an integer type. Shape
        and dtype are the same on every rank.
    comm : Communicator
        The ranks. Every rank calls the same operators in the same order.
    op : {"sum", "avg", "max", "min"}
        The reduction.
    out : torch.Tensor, optional
        Receives the result; `x` itself for in place. It must not overlap `x` in part.
    backend : str
        "auto", "oneshot", "twoshot", "nccl", "mpi" or "reference". All but "nccl" add in rank order and so give every
        rank the same bits.

    Returns
    -------
    torch.Tensor
        The result, `out` if it was given.

    Raises
    ------
    ArgumentError
        A tensor does not fit.
    UnsupportedError
        The backend refuses; the message is the table of all backends and their reasons.
    CommunicationError
        The communicator is closed or failed, a rank did not come in time, or (CPU tensors, or debug checks on) called
        with something else. A GPU kernel reports a missing rank at a later call or `Communicator.check`.

    Notes
    -----
    "oneshot" sends the message to every peer and adds what it receives: one trip, (size − 1) messages sent; for small
    messages. "twoshot" lets each rank add one part and send the sum to all: two trips, 2 (size − 1) / size messages
    sent. Thakur, Rabenseifner, Gropp, "Optimization of collective communication operations in MPICH" (2005), sections
    4.5 f.

    Examples
    --------
    >>> import torch
    >>> from warploom.comm import Communicator, all_reduce
    >>> comm = Communicator.single("cpu")
    >>> all_reduce(torch.arange(3.0), comm, op="max")
    tensor([0., 1., 2.])
    """
    key = call_key(ALL_REDUCE, comm, x, out, op, backend)
    known = None if key is None else comm.repeated.get(key)
    if isinstance(known, RepeatedCollective):
        out = x.new_empty(x.shape) if out is None else out
        known.fill(comm, out, x)
        return out
    check = Checker("all_reduce")
    x = check.tensor("x", x, "*", dtype=REDUCE_DTYPES)
    comm = check_comm(check, comm)
    check_choice(check, "op", op, REDUCE_OPS)
    out = check.output("out", out, tuple(x.shape), x.dtype)
    _run(out, x, comm.handle, op, backend)
    if key is not None:
        problem = AllReduceProblem.describe(comm, x, op)
        keep_call(key, comm, RepeatedCollective, ALL_REDUCE, problem, backend, comm, out, x)
    return out


@register_op("all_reduce(Tensor(a!) out, Tensor x, int comm, str op, str backend) -> ()")
def _run(out: torch.Tensor, x: torch.Tensor, comm: int, op: str, backend: str) -> None:
    communicator = find(comm, "all_reduce")
    problem = AllReduceProblem.describe(communicator, x, op)
    agree_on(communicator, "all_reduce", (op, str(x.dtype), tuple(x.shape), backend), not x.is_cuda)

    def run(chosen: Backend, buffer: torch.Tensor) -> None:
        chosen.run(problem, communicator, buffer, x.contiguous())

    run_into(ALL_REDUCE, problem, backend, out, run)
