"""The one primitive of the reference backends: every rank's tensor on every rank, through the transport."""

from __future__ import annotations

import torch

from warploom.comm.communicator import Communicator
from warploom.comm.problems.base import CommProblem
from warploom.core.backends import Support

__all__ = ["as_bytes", "gather", "gather_ragged", "support"]


def support(problem: CommProblem) -> Support:
    """The transport works on the host or through it, which a CUDA graph can't hold."""
    return Support.of(
        (not problem.capturing or problem.size == 1, "goes through the host, which a CUDA graph can't capture")
    )


def as_bytes(x: torch.Tensor) -> torch.Tensor:
    """A contiguous tensor as flat bytes."""
    return x.reshape(-1).view(torch.uint8)


def gather(comm: Communicator, x: torch.Tensor) -> torch.Tensor:
    """Equally shaped tensors of all ranks as ``[size, *x.shape]`` on the device of `x`."""
    if comm.size == 1 or x.numel() == 0:
        return x.expand(comm.size, *x.shape)
    sent = as_bytes(x.contiguous()).to(comm.transport.device)
    gathered = torch.empty(comm.size * sent.numel(), dtype=torch.uint8, device=sent.device)
    comm.transport.all_gather(gathered, sent)
    return gathered.to(x.device).view(x.dtype).view(comm.size, *x.shape)


def gather_ragged(comm: Communicator, x: torch.Tensor) -> list[torch.Tensor]:
    """Tensors ``[rows, ...]`` of all ranks, which may differ in their rows."""
    rows = comm.transport.exchange_objects(x.shape[0])
    padded = x.new_zeros(max(rows), *x.shape[1:])
    padded[: x.shape[0]] = x
    return [tensor[:count] for tensor, count in zip(gather(comm, padded), rows, strict=True)]
