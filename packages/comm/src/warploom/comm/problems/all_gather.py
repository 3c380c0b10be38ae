"""The all-gather problem."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from warploom.comm.communicator import Communicator
from warploom.comm.problems.base import CommProblem

__all__ = ["AllGatherProblem"]


@dataclass(frozen=True, kw_only=True)
class AllGatherProblem(CommProblem):
    """Give all ranks the `nbytes` bytes of each rank."""

    nbytes: int

    @classmethod
    def describe(cls, comm: Communicator, x: torch.Tensor) -> AllGatherProblem:
        """The problem of gathering `x`."""
        return cls(nbytes=x.nbytes, **cls.among(comm, x))
