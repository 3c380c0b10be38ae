"""What every communication problem has: the ranks and what connects them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from warploom.comm.communicator import DEFAULT_WORKSPACE_BYTES, Communicator
from warploom.comm.peer_workspace import PeerWorkspace
from warploom.core.problem import Problem

__all__ = ["CommProblem"]


@dataclass(frozen=True, kw_only=True)
class CommProblem(Problem):
    """A collective of `size` ranks. Every field has the same value on all of them, so all choose the same backend.

    Attributes
    ----------
    size : int
        Ranks.
    transport : str
        ``"alone"``, ``"mpi"``, ``"gloo"`` or ``"nccl"``.
    half_bytes : int
        Bytes of mailboxes that one call may use; 0 without peer memory.
    capturing : bool
        A CUDA graph is being captured.
    no_peer_kernels, no_nccl : str
        Why kernels over peer memory, or NCCL, can't serve the ranks; empty when they can.
    """

    # What decides support and not speed: a backend that refuses is skipped anyway.
    untuned = frozenset(("transport", "half_bytes", "capturing", "no_peer_kernels", "no_nccl"))

    size: int
    transport: str = "mpi"
    half_bytes: int = PeerWorkspace.half_of(DEFAULT_WORKSPACE_BYTES)
    capturing: bool = False
    no_peer_kernels: str = ""
    no_nccl: str = ""

    @staticmethod
    def among(comm: Communicator, x: torch.Tensor) -> dict[str, Any]:
        """The fields of this class for a call with tensor `x`."""
        capturing = x.is_cuda and torch.cuda.is_current_stream_capturing()
        workspace = comm.peer_workspace
        return {
            **Problem.where(x),
            "size": comm.size,
            "transport": comm.transport.name,
            "half_bytes": 0 if workspace is None else workspace.half_bytes,
            "capturing": capturing,
            "no_peer_kernels": comm.why_no_peer_kernels if x.is_cuda else "",
            "no_nccl": comm.why_no_nccl(capturing) if x.is_cuda and comm.size > 1 else "",
        }
