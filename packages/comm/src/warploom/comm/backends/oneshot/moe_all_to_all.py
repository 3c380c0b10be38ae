"""Expert-parallel dispatch and combine over peer memory, for few tokens."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated

import torch

from warploom.comm.backends.peer_kernel import (
    DTYPES,
    PACKET_BYTES,
    PIECE_BYTES,
    launch,
    launch_shape,
    peer_spec,
    prepare,
)
from warploom.comm.communicator import Communicator
from warploom.comm.landing import Landing
from warploom.comm.peer_workspace import MAX_BLOCKS
from warploom.comm.problems.moe_all_to_all import MoeCombineProblem, MoeDispatchProblem
from warploom.core.backends import Backend, Support
from warploom.core.jit import KernelSpec, ParamStruct, cpp_type, i32, i64, ptr

__all__ = ["MAX_PAYLOADS", "CombineParams", "DispatchParams", "OneShotCombine", "OneShotDispatch", "RoutingParams"]
__all__ += ["dispatch_params", "place_tokens", "routing_spec"]

MAX_PAYLOADS = 8  # kMaxPayloads
_ROUTING_THREADS = 1024
_DISPATCH_SHAPE = MAX_BLOCKS, 512


class RoutingParams(ParamStruct):
    """Mirror of the kernel's struct."""

    cpp_name = "warploom::comm::RoutingParams"

    experts: ptr
    slots: ptr
    sent: ptr
    tokens: i32
    top_k: i32
    num_experts: i32
    words: i32


class DispatchParams(ParamStruct):
    """Mirror of the kernel's struct."""

    cpp_name = "warploom::comm::DispatchParams"

    payloads: Annotated[ptr, MAX_PAYLOADS]
    received: Annotated[ptr, MAX_PAYLOADS]
    row_bytes: Annotated[i64, MAX_PAYLOADS]
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


@functools.cache
def routing_spec(size: int) -> KernelSpec:
    """The kernel that places tokens, for a number of ranks."""
    return KernelSpec(
        family="comm",
        header="warploom/comm/routing.cuh",
        kernel="warploom::comm::route_tokens_kernel",
        config={"kRanks": size, "kThreads": _ROUTING_THREADS},
        params=(RoutingParams,),
    )


def place_tokens(
    problem: MoeDispatchProblem, comm: Communicator, slots: torch.Tensor, experts: torch.Tensor
) -> torch.Tensor:
    """Fill ``slots [tokens, size]`` on the GPU; returns how many tokens go to each rank, ``[size]``."""
    experts, sent = experts.contiguous(), slots.new_empty(problem.size)
    routing = RoutingParams(
        experts=experts,
        slots=slots,
        sent=sent,
        tokens=experts.shape[0],
        top_k=problem.top_k,
        num_experts=problem.num_experts,
        words=experts.element_size() // 4,
    )
    routing_spec(problem.size).load(comm.device).launch(1, _ROUTING_THREADS, routing, pdl=problem.arch >= 90)
    return sent


def _support(problem: MoeDispatchProblem | MoeCombineProblem, packets: int) -> Support:
    """Ranks with mailboxes that hold so many packets."""
    if problem.no_peer_kernels:
        return Support((problem.no_peer_kernels,))
    most = problem.half_bytes // PACKET_BYTES
    return Support.of(
        (problem.size > 1, "moves rows between ranks, there is one"),
        (
            packets <= most,
            f"this workspace holds {most} packets, rows take up to {packets}; more workspace_bytes lift that",
        ),
    )


class OneShotDispatch(Backend):
    """One launch to place tokens and one to move them; half of a packet is flags."""

    name = "oneshot"
    needs_gpu = True
    min_arch = 80

    @staticmethod
    @functools.cache
    def spec(size: int) -> KernelSpec:
        """The instance for a number of ranks."""
        return peer_spec("moe", "dispatch_kernel", size, DispatchParams)

    def supports(self, problem: MoeDispatchProblem) -> Support:
        pieces = problem.row_bytes // PIECE_BYTES + problem.payloads
        packets = problem.size * (MAX_BLOCKS + problem.max_tokens * pieces)
        few = problem.payloads <= MAX_PAYLOADS
        return Support.of((few, f"takes up to {MAX_PAYLOADS} payloads, got {problem.payloads}")) & _support(
            problem, packets
        )

    def run(
        self,
        problem: MoeDispatchProblem,
        comm: Communicator,
        received: list[torch.Tensor],
        counts: torch.Tensor,
        slots: torch.Tensor,
        experts: torch.Tensor,
        payloads: list[torch.Tensor],
        landing: Landing | None,
    ) -> None:
        sent = place_tokens(problem, comm, slots, experts)
        payloads = [payload.contiguous() for payload in payloads]
        params = dispatch_params(payloads, received, slots, sent, counts, problem.max_tokens)
        launch(comm, self.spec(problem.size), _DISPATCH_SHAPE, params)


def dispatch_params(
    payloads: list[torch.Tensor],
    received: list[torch.Tensor],
    slots: torch.Tensor,
    sent: torch.Tensor,
    counts: torch.Tensor,
    max_tokens: int,
) -> DispatchParams:
    """What a rank launches the dispatch with; all tensors are contiguous."""
    row_bytes = [torch.Size(payload.shape[1:]).numel() * payload.element_size() for payload in payloads]
    unused = MAX_PAYLOADS - len(payloads)
    return DispatchParams(
        payloads=[*payloads, *[None] * unused],
        received=[*received, *[None] * unused],
        row_bytes=[*row_bytes, *[0] * unused],
        slots=slots,
        sent=sent,
        counts=counts,
        tokens=slots.shape[0],
        max_tokens=max_tokens,
        num_payloads=len(payloads),
        row_pieces=sum(-(-bytes // PIECE_BYTES) for bytes in row_bytes),
    )


class OneShotCombine(Backend):
    """Rows go back as packets, and are added as they come."""

    name = "oneshot"
    needs_gpu = True
    min_arch = 80

    @staticmethod
    @functools.cache
    def spec(dtype: torch.dtype, size: int) -> KernelSpec:
        """The instance for a dtype and a number of ranks."""
        return peer_spec("moe", "combine_kernel", size, CombineParams, T=cpp_type(dtype))

    def supports(self, problem: MoeCombineProblem) -> Support:
        packets = problem.size * problem.max_tokens * -(-problem.row_bytes // PACKET_BYTES)
        whole = problem.row_bytes % PACKET_BYTES == 0
        return Support.of(
            (problem.dtype in DTYPES, f"adds 16-bit and 32-bit floats, not {problem.dtype}"),
            (whole, f"takes rows of whole {PACKET_BYTES} bytes, not of {problem.row_bytes}"),
        ) & _support(problem, packets)

    def run(
        self,
        problem: MoeCombineProblem,
        comm: Communicator,
        out: torch.Tensor,
        payload: torch.Tensor,
        slots: torch.Tensor,
        counts: torch.Tensor,
        landing: Landing | None,
    ) -> None:
        target, payload = (x if x.data_ptr() % PACKET_BYTES == 0 else x.clone() for x in (out, payload))
        packets = problem.row_bytes // PACKET_BYTES
        params = CombineParams(
            payload=payload,
            output=target,
            slots=slots,
            counts=counts,
            tokens=slots.shape[0],
            max_tokens=problem.max_tokens,
            packets=packets,
        )
        shape = launch_shape(max(1, problem.max_tokens * packets))
        launch(comm, self.spec(problem.dtype, problem.size), shape, params)
        if target is not out:
            out.copy_(target)

    def bind(
        self,
        problem: MoeCombineProblem,
        comm: Communicator,
        out: torch.Tensor,
        payload: torch.Tensor,
        slots: torch.Tensor,
        counts: torch.Tensor,
        landing: Landing | None,
    ) -> Callable[..., None]:
        packets = problem.row_bytes // PACKET_BYTES
        params = CombineParams(
            payload=None,
            output=None,
            slots=None,
            counts=None,
            tokens=slots.shape[0],
            max_tokens=problem.max_tokens,
            packets=packets,
        )
        shape = launch_shape(max(1, problem.max_tokens * packets))
        launch_at = prepare(comm, self.spec(problem.dtype, problem.size), shape, params, pointers=4)

        def run(
            comm: Communicator,
            out: torch.Tensor,
            payload: torch.Tensor,
            slots: torch.Tensor,
            counts: torch.Tensor,
            landing: Landing | None,
        ) -> None:
            at_payload, at_out = payload.data_ptr(), out.data_ptr()
            if (at_payload | at_out) % PACKET_BYTES:
                self.run(problem, comm, out, payload, slots, counts, landing)
            else:
                launch_at(at_payload, at_out, slots.data_ptr(), counts.data_ptr())

        return run
