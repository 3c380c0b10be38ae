"""Expert-parallel dispatch and combine over peer memory, for many tokens: rows land where they are read."""

from __future__ import annotations

from typing import Annotated

import torch

from warploom.comm.backends.peer_kernel import MAX_THREADS
from warploom.comm.backends.peer_moe import PeerCombine, PeerDispatch, PeerMoe
from warploom.comm.landing import MOST_PARTS, MOST_PAYLOADS, Landing, LandingParams
from warploom.comm.peer_workspace import MAX_BLOCKS
from warploom.comm.problems.moe_all_to_all import MoeCombineProblem, MoeDispatchProblem
from warploom.core.backends import Support
from warploom.core.jit import ParamStruct, i32, i64, ptr

__all__ = ["DirectCombine", "DirectCombineParams", "DirectDispatch", "DirectDispatchParams"]

_SHAPE = MAX_BLOCKS, MAX_THREADS
_PART_BYTES = 8192  # of long rows


class DirectDispatchParams(ParamStruct):
    """Mirror of the kernel's struct."""

    cpp_name = "warploom::comm::DirectDispatchParams"

    payloads: Annotated[ptr, MOST_PAYLOADS]
    received: Annotated[i64, MOST_PAYLOADS]
    row_bytes: Annotated[i64, MOST_PAYLOADS]
    slots: ptr
    sent: ptr
    counts: ptr
    tokens: i32
    max_tokens: i32
    num_payloads: i32
    parts: i32


class DirectCombineParams(ParamStruct):
    """Mirror of the kernel's struct."""

    cpp_name = "warploom::comm::DirectCombineParams"

    payload: ptr
    output: ptr
    slots: ptr
    counts: ptr
    returned: i64
    tokens: i32
    max_tokens: i32
    packets: i32
    parts: i32


def _parts(problem: MoeDispatchProblem | MoeCombineProblem) -> int:
    """Parts of a row, the same on all ranks: enough for all warps where rows are few, and none that keeps one for long."""
    warps = _SHAPE[0] * _SHAPE[1] // 32
    parts = max(2 * warps // max(1, problem.max_tokens * problem.size), -(-problem.row_bytes // _PART_BYTES))
    return max(1, min(MOST_PARTS, parts))


class _Direct(PeerMoe):
    """Base: rows land in symmetric memory."""

    name = "direct"
    header = "moe_direct"
    shared_types = (LandingParams,)
    accesses = ("STG.E.128", "LDG.E.128", "STG.E.STRONG.SYS", "LDG.E.STRONG.SYS", "MEMBAR")

    def memory(self, problem: MoeDispatchProblem | MoeCombineProblem) -> Support:
        return Support.of((problem.lands, "needs symmetric memory for the rows, which MoeAlltoAll could not get"))

    def shape(self, problem: MoeDispatchProblem | MoeCombineProblem) -> tuple[int, int]:
        return _SHAPE

    def shared_params(self, landing: Landing | None) -> tuple[ParamStruct, ...]:
        assert landing is not None, "chosen without memory for the rows"
        return (landing.params,)


class DirectDispatch(_Direct, PeerDispatch):
    """Warps write rows where they are read, and a flag behind each."""

    kernel = "direct_dispatch_kernel"
    params = DirectDispatchParams

    def destinations(self, received: list[torch.Tensor], landing: Landing | None) -> list[int]:
        assert landing is not None, "chosen without memory for the rows"
        return [landing.offset_of(tensor) for tensor in received]

    def division(self, problem: MoeDispatchProblem, row_bytes: list[int]) -> dict[str, int]:
        return {"parts": _parts(problem)}


class DirectCombine(_Direct, PeerCombine):
    """Half of the warps write rows to where they are added by the others."""

    kernel = "direct_combine_kernel"
    params = DirectCombineParams

    def more(self, problem: MoeCombineProblem, landing: Landing | None) -> dict[str, int]:
        assert landing is not None, "chosen without memory for the rows"
        return {"returned": landing.rows_offset, "parts": _parts(problem)}
