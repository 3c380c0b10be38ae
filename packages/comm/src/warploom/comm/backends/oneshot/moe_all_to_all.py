"""Expert-parallel dispatch and combine over peer memory, for few tokens: rows as packets."""

from __future__ import annotations

from typing import Annotated, Any

import torch

from warploom.comm.backends.peer_kernel import MAX_THREADS, PACKET_BYTES, PIECE_BYTES, launch_shape
from warploom.comm.backends.peer_moe import PeerCombine, PeerDispatch
from warploom.comm.landing import MOST_PAYLOADS, Landing
from warploom.comm.peer_workspace import MAX_BLOCKS
from warploom.comm.problems.moe_all_to_all import MoeCombineProblem, MoeDispatchProblem
from warploom.core.backends import Support
from warploom.core.jit import ParamStruct, i32, i64, ptr

__all__ = ["CombineParams", "DispatchParams", "OneShotCombine", "OneShotDispatch"]


class DispatchParams(ParamStruct):
    """Mirror of the kernel's struct."""

    cpp_name = "warploom::comm::DispatchParams"

    payloads: Annotated[ptr, MOST_PAYLOADS]
    received: Annotated[ptr, MOST_PAYLOADS]
    row_bytes: Annotated[i64, MOST_PAYLOADS]
    slots: ptr
    sent: ptr
    counts: ptr
    tokens: i32
    max_tokens: i32
    num_payloads: i32
    row_pieces: i32


class CombineParams(ParamStruct):
    """Mirror of the kernel's struct."""

    cpp_name = "warploom::comm::CombineParams"

    payload: ptr
    output: ptr
    slots: ptr
    counts: ptr
    tokens: i32
    max_tokens: i32
    packets: i32


def _fits(problem: Any, packets: int) -> Support:
    """Whether the mailboxes hold so many packets."""
    most = problem.half_bytes // PACKET_BYTES
    reason = f"this workspace holds {most} packets, rows take up to {packets}; more workspace_bytes lift that"
    return Support.of((packets <= most, reason))


class OneShotDispatch(PeerDispatch):
    """Pieces of rows, each beside its flag."""

    name = "oneshot"
    header = "moe"
    kernel = "dispatch_kernel"
    params = DispatchParams

    def memory(self, problem: MoeDispatchProblem) -> Support:
        pieces = problem.row_bytes // PIECE_BYTES + problem.payloads
        return _fits(problem, problem.size * (MAX_BLOCKS + problem.max_tokens * pieces))

    def shape(self, problem: MoeDispatchProblem) -> tuple[int, int]:
        return MAX_BLOCKS, MAX_THREADS

    def destinations(self, received: list[torch.Tensor], landing: Landing | None) -> list[int]:
        return [tensor.data_ptr() for tensor in received]

    def division(self, problem: MoeDispatchProblem, row_bytes: list[int]) -> dict[str, int]:
        return {"row_pieces": sum(-(-number // PIECE_BYTES) for number in row_bytes)}


class OneShotCombine(PeerCombine):
    """Rows of numbers, added as they come."""

    name = "oneshot"
    header = "moe"
    kernel = "combine_kernel"
    params = CombineParams

    def memory(self, problem: MoeCombineProblem) -> Support:
        return _fits(problem, problem.size * problem.max_tokens * -(-problem.row_bytes // PACKET_BYTES))

    def shape(self, problem: MoeCombineProblem) -> tuple[int, int]:
        return launch_shape(max(1, problem.max_tokens * (problem.row_bytes // PACKET_BYTES)))
