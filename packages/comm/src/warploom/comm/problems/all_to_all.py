"""The all-to-all problem."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from warploom.comm.communicator import Communicator
from warploom.comm.problems.base import CommProblem

__all__ = ["AllToAllProblem", "row_bytes"]


@dataclass(frozen=True, kw_only=True)
class AllToAllProblem(CommProblem):
    """Every rank sends rows to every rank.

    Attributes
    ----------
    row_bytes : int
        Bytes of one row. How many rows differs between ranks, so it may not decide.
    """

    row_bytes: int

    @classmethod
    def describe(cls, comm: Communicator, x: torch.Tensor) -> AllToAllProblem:
        """The problem of exchanging the rows of ``x [rows, ...]``."""
        return cls(row_bytes=row_bytes(x), **cls.among(comm, x))


def row_bytes(x: torch.Tensor) -> int:
    """Bytes of a row of ``x [rows, ...]``."""
    return torch.Size(x.shape[1:]).numel() * x.dtype.itemsize
