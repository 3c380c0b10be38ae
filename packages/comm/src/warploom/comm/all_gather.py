"""`all_gather`: the tensors of all ranks, on every rank."""

from __future__ import annotations

import torch

from warploom.comm.backends.exchange.all_gather import ExchangeAllGather
from warploom.comm.backends.mpi.all_gather import MpiAllGather
from warploom.comm.backends.nccl.all_gather import NcclAllGather
from warploom.comm.backends.oneshot.all_gather import OneShotAllGather
from warploom.comm.backends.reference.all_gather import ReferenceAllGather
from warploom.comm.collective import RepeatedCollective, agree_on, check_comm, run_into
from warploom.comm.communicator import Communicator
from warploom.comm.handles import find
from warploom.comm.problems.all_gather import AllGatherProblem
from warploom.comm.repeated import call_key, keep_call
from warploom.core.backends import Backend, Operator
from warploom.core.tensors import Checker
from warploom.core.torch_ops import register_op

__all__ = ["ALL_GATHER", "all_gather"]

ALL_GATHER = Operator(
    "all_gather",
    family="comm",
    backends=(OneShotAllGather(), ExchangeAllGather(), NcclAllGather(), MpiAllGather(), ReferenceAllGather()),
)


def all_gather(
    x: torch.Tensor, comm: Communicator, dim: int = 0, out: torch.Tensor | None = None, *, backend: str = "auto"
) -> torch.Tensor:
    """Concatenate the tensors of all ranks along a dimension, in rank order; every rank gets the result.

    Parameters
    ----------
    x : torch.Tensor
        At least 1-D, any dtype and strides. Shape and dtype are the same on every rank.
    comm : Communicator
        The ranks. Every rank calls the same operators in the same order.
    dim : int
        Where to concatenate. 0 needs no copy after the transfer.
    out : torch.Tensor, optional
        Receives the result: the shape of `x` with dimension `dim` times the number of ranks. It must not overlap `x`.
    backend : str
        "auto", "nccl", "oneshot", "exchange", "mpi" or "reference".

    Returns
    -------
    torch.Tensor
        The result, `out` if it was given.

    Raises
    ------
    ArgumentError, UnsupportedError, CommunicationError
        As in `all_reduce`.

    Examples
    --------
    >>> import torch
    >>> from warploom.comm import Communicator, all_gather
    >>> comm = Communicator.single("cpu")
    >>> all_gather(torch.arange(3), comm)
    tensor([0, 1, 2])
    """
    key = call_key(ALL_GATHER, comm, x, out, dim, backend)
    known = None if key is None else comm.repeated.get(key)
    if isinstance(known, RepeatedCollective):
        out = x.new_empty(_gathered_shape(x, comm, dim % x.dim())) if out is None else out
        known.fill(comm, _by_rank(out, x, comm, dim % x.dim()), x)
        return out
    check = Checker("all_gather")
    x = check.tensor("x", x, "* first")
    comm = check_comm(check, comm)
    check.require(-x.dim() <= dim < x.dim(), "dim", f"a dimension of the {x.dim()}-D `x`", dim)
    dim %= x.dim()
    out = check.output("out", out, _gathered_shape(x, comm, dim), x.dtype)
    _run(out, x, comm.handle, dim, backend)
    if key is not None:
        problem = AllGatherProblem.describe(comm, x)
        keep_call(key, comm, RepeatedCollective, ALL_GATHER, problem, backend, comm, _by_rank(out, x, comm, dim), x)
    return out


def _gathered_shape(x: torch.Tensor, comm: Communicator, dim: int) -> tuple[int, ...]:
    return (*x.shape[:dim], comm.size * x.shape[dim], *x.shape[dim + 1 :])


def _by_rank(out: torch.Tensor, x: torch.Tensor, comm: Communicator, dim: int) -> torch.Tensor:
    """The result as ``[size, *x.shape]``: before the ranks are moved to `dim` and the two dimensions merged."""
    if dim == 0:
        return out.view(comm.size, *x.shape)
    return out.unflatten(dim, (comm.size, x.shape[dim])).movedim(dim, 0)


@register_op("all_gather(Tensor(a!) out, Tensor x, int comm, int dim, str backend) -> ()")
def _run(out: torch.Tensor, x: torch.Tensor, comm: int, dim: int, backend: str) -> None:
    communicator = find(comm, "all_gather")
    problem = AllGatherProblem.describe(communicator, x)
    agree_on(communicator, "all_gather", (str(x.dtype), tuple(x.shape), backend), not x.is_cuda)

    def run(chosen: Backend, buffer: torch.Tensor) -> None:
        chosen.run(problem, communicator, buffer, x.contiguous())

    run_into(ALL_GATHER, problem, backend, _by_rank(out, x, communicator, dim), run)
