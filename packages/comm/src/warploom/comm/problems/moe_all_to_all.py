"""The problems of expert-parallel dispatch and combine."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from warploom.comm.communicator import Communicator
from warploom.comm.problems.all_to_all import AllToAllProblem, row_bytes

__all__ = ["MoeCombineProblem", "MoeDispatchProblem"]


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
