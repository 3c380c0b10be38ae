"""The all-reduce problem."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from warploom.comm.communicator import Communicator
from warploom.comm.problems.base import CommProblem

__all__ = ["AllReduceProblem"]


@dataclass(frozen=True, kw_only=True)
class AllReduceProblem(CommProblem):
    """Reduce a message of `nbytes` bytes of `dtype` over all ranks with `op`."""

    nbytes: int
    dtype: torch.dtype
    op: str = "sum"

    @classmethod
    def describe(cls, comm: Communicator, x: torch.Tensor, op: str = "sum") -> AllReduceProblem:
        """The problem of reducing `x`."""
        return cls(nbytes=x.nbytes, dtype=x.dtype, op=op, **cls.among(comm, x))
