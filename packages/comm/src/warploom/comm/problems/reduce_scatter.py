"""The reduce-scatter problem."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from warploom.comm.communicator import Communicator
from warploom.comm.problems.base import CommProblem

__all__ = ["ReduceScatterProblem"]


@dataclass(frozen=True, kw_only=True)
class ReduceScatterProblem(CommProblem):
    """Reduce a message of `nbytes` bytes of `dtype` over all ranks with `op`; each keeps one of `size` equal parts."""

    nbytes: int
    dtype: torch.dtype
    op: str = "sum"

    @classmethod
    def describe(cls, comm: Communicator, x: torch.Tensor, op: str) -> ReduceScatterProblem:
        """The problem of reducing and scattering `x`."""
        return cls(nbytes=x.nbytes, dtype=x.dtype, op=op, **cls.among(comm, x))
