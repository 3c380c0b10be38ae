"""The problems of expert-parallel dispatch and combine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from warploom.comm.communicator import Communicator
from warploom.comm.landing import Landing
from warploom.comm.problems.all_to_all import AllToAllProblem, row_bytes

__all__ = ["DispatchTensors", "MoeCombineProblem", "MoeDispatchProblem", "RowPlaces"]


class DispatchTensors(NamedTuple):
    """Tensors of one dispatch.

    Attributes
    ----------
    received : list of torch.Tensor
        ``[size, max_tokens, ...]``: each payload's rows from each rank.
    counts : torch.Tensor
        int32 ``[size]``: how many rows came from each rank.
    slots : torch.Tensor
        int32 ``[tokens, size]``: a token's place among the rows that its rank sends to another, -1 for none.
    experts : torch.Tensor
        ``[tokens, top_k]``.
    payloads : sequence of torch.Tensor
        ``[tokens, ...]``.
    landing : Landing, optional
        The symmetric memory that `received` are views of.
    """

    received: list[torch.Tensor]
    counts: torch.Tensor
    slots: torch.Tensor
    experts: torch.Tensor
    payloads: Sequence[torch.Tensor]
    landing: Landing | None


class RowPlaces(NamedTuple):
    """Where a combine finds the rows of its tokens.

    Attributes
    ----------
    slots, counts : torch.Tensor
        The dispatch's.
    landing : Landing, optional
        Symmetric memory that rows may come back to.
    """

    slots: torch.Tensor
    counts: torch.Tensor
    landing: Landing | None


@dataclass(frozen=True, kw_only=True)
class MoeDispatchProblem(AllToAllProblem):
    """Send tokens to the ranks of their experts.

    Attributes
    ----------
    max_tokens : int
        Rows that a rank may send to one other rank.
    top_k, num_experts : int
        Experts of a token, and of all ranks together.
    payloads : int
        Tensors that travel with a token; `row_bytes` is their sum.
    lands : bool
        The received rows lie in symmetric memory.
    """

    untuned = AllToAllProblem.untuned | {"lands"}

    max_tokens: int
    top_k: int
    num_experts: int
    payloads: int
    lands: bool = False

    @classmethod
    def of(
        cls,
        comm: Communicator,
        experts: torch.Tensor,
        payloads: list[torch.Tensor],
        max_tokens: int,
        num_experts: int,
        lands: bool,
    ) -> MoeDispatchProblem:
        """The problem of dispatching tokens with ``experts [tokens, top_k]``."""
        row = sum(map(row_bytes, payloads))
        return cls(row_bytes=row, max_tokens=max_tokens, top_k=experts.shape[1], num_experts=num_experts,
                   payloads=len(payloads), lands=lands, **cls.among(comm, experts))  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MoeCombineProblem(AllToAllProblem):
    """Bring the experts' results of each token back and add them.

    Attributes
    ----------
    max_tokens : int
        Rows that a rank received at most from one other.
    dtype : torch.dtype
        Of the results.
    lands : bool
        There is symmetric memory for the returned rows.
    """

    untuned = AllToAllProblem.untuned | {"lands"}

    max_tokens: int
    dtype: torch.dtype
    lands: bool = False

    @classmethod
    def of(cls, comm: Communicator, payload: torch.Tensor, lands: bool) -> MoeCombineProblem:
        """The problem of combining ``payload [size, max_tokens, hidden]``."""
        return cls(row_bytes=payload.shape[2] * payload.dtype.itemsize, max_tokens=payload.shape[1],
                   dtype=payload.dtype, lands=lands, **cls.among(comm, payload))  # fmt: skip
