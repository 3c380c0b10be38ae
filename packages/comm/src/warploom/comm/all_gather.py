"""`all_gather`: the tensors of all ranks, on every rank."""

from __future__ import annotations

import torch

from warploom.comm.backends.exchange.all_gather import ExchangeAllGather
from warploom.comm.backends.mpi.all_gather import MpiAllGather
from warploom.comm.backends.nccl.all_gather import NcclAllGather
from warploom.comm.backends.oneshot.all_gather import OneShotAllGather
from warploom.comm.backends.reference.all_gather import ReferenceAllGather
from warploom.comm.collective import agree_on, check_comm, run_into
from warploom.comm.communicator import Communicator
from warploom.comm.handles import find
from warploom.comm.problems.all_gather import AllGatherProblem
from warploom.core.backends import Backend, Operator
from warploom.core.tensors import Checker
from warploom.core.torch_ops import register_op

__all__ = ["ALL_GATHER", "all_gather"]

ALL_GATHER = Operator(
    "all_gather",
    family="comm",
    backends=(
        NcclAllGather(),
        MpiAllGather(),
        ReferenceAllGather(),
        OneShotAllGather(),  # these two by name, until they are measured
        ExchangeAllGather(),
    ),
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
    check = Checker("all_gather")
    x = check.tensor("x", x, "* first")
    comm = check_comm(check, comm)
    check.require(-x.dim() <= dim < x.dim(), "dim", f"a dimension of the {x.dim()}-D `x`", dim)
    dim %= x.dim()
    shape = (*x.shape[:dim], comm.size * x.shape[dim], *x.shape[dim + 1 :])
    out = check.output("out", out, shape, x.dtype)
    _run(out, x, comm.handle, dim, backend)
    return out


@register_op("all_gather(Tensor(a!) out, Tensor x, int comm, int dim, str backend) -> ()")
def _run(out: torch.Tensor, x: torch.Tensor, comm: int, dim: int, backend: str) -> None:
    communicator = find(comm, "all_gather")
    problem = AllGatherProblem.describe(communicator, x)
    agree_on(communicator, "all_gather", (str(x.dtype), tuple(x.shape), backend), not x.is_cuda)
    # [size, *x.shape] with the ranks moved before `dim` is the result before its two dimensions are merged.
    by_rank = out.unflatten(dim, (communicator.size, x.shape[dim])).movedim(dim, 0)

    def run(chosen: Backend, buffer: torch.Tensor) -> None:
        chosen.run(problem, communicator, buffer, x.contiguous())

    run_into(ALL_GATHER, problem, backend, by_rank, run)
