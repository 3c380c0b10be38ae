"""Expert-parallel dispatch and combine over peer memory, for many tokens: rows land where they are read."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated

import torch

from warploom.comm.backends.oneshot.moe_all_to_all import MAX_PAYLOADS, RoutingParams, place_tokens, routing_spec
from warploom.comm.backends.peer_kernel import DTYPES, PACKET_BYTES, launch, peer_spec, prepare
from warploom.comm.communicator import Communicator
from warploom.comm.landing import MOST_PARTS, Landing, LandingParams
from warploom.comm.peer_workspace import MAX_BLOCKS
from warploom.comm.problems.moe_all_to_all import MoeCombineProblem, MoeDispatchProblem
from warploom.core.backends import Backend, Support
from warploom.core.jit import KernelSpec, ParamStruct, cpp_type, i32, i64, ptr

__all__ = ["DirectCombine", "DirectCombineParams", "DirectDispatch", "DirectDispatchParams"]

_SHAPE = MAX_BLOCKS, 512


class DirectDispatchParams(ParamStruct):
    """Mirror of the kernel's struct."""

    cpp_name = "warploom::comm::DirectDispatchParams"

    payloads: Annotated[ptr, MAX_PAYLOADS]
    received: Annotated[i64, MAX_PAYLOADS]
    row_bytes: Annotated[i64, MAX_PAYLOADS]
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
    returned: i64
    slots: ptr
    counts: ptr
    tokens: i32
    max_tokens: i32
    packets: i32
    parts: i32


def _support(problem: MoeDispatchProblem | MoeCombineProblem) -> Support:
    """Ranks with memory that rows can land in."""
    if problem.no_peer_kernels:
        return Support((problem.no_peer_kernels,))
    return Support.of(
        (problem.size > 1, "moves rows between ranks, there is one"),
        (problem.lands, "needs symmetric memory for the rows, which MoeAlltoAll could not get"),
    )


def _parts(problem: MoeDispatchProblem | MoeCombineProblem) -> int:
    """Parts of a row, the same on all ranks: enough for all warps where rows are few."""
    warps = _SHAPE[0] * _SHAPE[1] // 32
    return max(1, min(MOST_PARTS, 2 * warps // max(1, problem.max_tokens * problem.size)))


class DirectDispatch(Backend):
    """One launch to place tokens and one to write them where they are read."""

    name = "direct"
    needs_gpu = True
    min_arch = 80

    @staticmethod
    @functools.cache
    def spec(size: int) -> KernelSpec:
        """The instance for a number of ranks."""
        return peer_spec(
            "moe_direct", "direct_dispatch_kernel", size, LandingParams, DirectDispatchParams, expect_sass=()
        )

    def supports(self, problem: MoeDispatchProblem) -> Support:
        few = problem.payloads <= MAX_PAYLOADS
        return Support.of((few, f"takes up to {MAX_PAYLOADS} payloads, got {problem.payloads}")) & _support(problem)

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
        assert landing is not None, "chosen without memory for the rows"
        sent = place_tokens(problem, comm, slots, experts)
        payloads = [payload.contiguous() for payload in payloads]
        layout = _layout(received, payloads, landing)
        addresses = [payload.data_ptr() for payload in payloads]
        params = _dispatch_params(problem, layout, addresses, slots, sent, counts)
        launch(comm, self.spec(problem.size), _SHAPE, landing.params, params)

    def bind(
        self,
        problem: MoeDispatchProblem,
        comm: Communicator,
        received: list[torch.Tensor],
        counts: torch.Tensor,
        slots: torch.Tensor,
        experts: torch.Tensor,
        payloads: list[torch.Tensor],
        landing: Landing | None,
    ) -> Callable[..., None]:
        assert landing is not None, "chosen without memory for the rows"
        offsets, row_bytes = _layout(received, payloads, landing)
        unused = [0] * (MAX_PAYLOADS - len(payloads))
        known = (*unused, *offsets, *row_bytes)  # between the addresses of payloads and those of the numbers
        params = _dispatch_params(problem, (offsets, row_bytes), [0] * len(payloads), slots, None, counts)
        move = prepare(comm, self.spec(problem.size), _SHAPE, landing.params, params, pointers=3 * MAX_PAYLOADS + 3)
        place = _prepare_routing(problem, comm, slots, experts)
        size = problem.size

        def run(
            comm: Communicator,
            received: list[torch.Tensor],
            counts: torch.Tensor,
            slots: torch.Tensor,
            experts: torch.Tensor,
            payloads: list[torch.Tensor],
            landing: Landing,
        ) -> None:
            # Copies of what is not contiguous have to live until they are read in the order of the stream.
            experts, payloads = experts.contiguous(), [payload.contiguous() for payload in payloads]
            sent = slots.new_empty(size)
            at_slots, at_sent = slots.data_ptr(), sent.data_ptr()
            place(experts.data_ptr(), at_slots, at_sent)
            move(*[payload.data_ptr() for payload in payloads], *known, at_slots, at_sent, counts.data_ptr())

        return run


def _layout(
    received: list[torch.Tensor], payloads: list[torch.Tensor], landing: Landing
) -> tuple[list[int], list[int]]:
    """Where each payload's rows land and how large they are, with zeros for those that there could be."""
    unused = [0] * (MAX_PAYLOADS - len(payloads))
    row_bytes = [torch.Size(payload.shape[1:]).numel() * payload.element_size() for payload in payloads]
    return [*map(landing.offset_of, received), *unused], [*row_bytes, *unused]


def _dispatch_params(
    problem: MoeDispatchProblem, layout: tuple[list[int], list[int]], addresses: list[int], slots: torch.Tensor,
    sent: torch.Tensor | None, counts: torch.Tensor,
) -> DirectDispatchParams:  # fmt: skip
    """What a rank launches the dispatch with."""
    offsets, row_bytes = layout
    return DirectDispatchParams(
        payloads=[*addresses, *[0] * (MAX_PAYLOADS - len(addresses))],
        received=offsets,
        row_bytes=row_bytes,
        slots=slots,
        sent=sent,
        counts=counts,
        tokens=slots.shape[0],
        max_tokens=problem.max_tokens,
        num_payloads=len(addresses),
        parts=_parts(problem),
    )


def _prepare_routing(
    problem: MoeDispatchProblem, comm: Communicator, slots: torch.Tensor, experts: torch.Tensor
) -> Callable[..., None]:
    """The launch of `place_tokens` again and again with other experts, slots and numbers of tokens sent."""
    spec = routing_spec(problem.size)
    params = RoutingParams(
        experts=None,
        slots=None,
        sent=None,
        tokens=slots.shape[0],
        top_k=problem.top_k,
        num_experts=problem.num_experts,
        words=experts.element_size() // 4,
    )
    threads = int(spec.config["kThreads"])
    return spec.load(comm.device).prepare(1, threads, params, pointers=3, pdl=problem.arch >= 90).launch


class DirectCombine(Backend):
    """Rows go back to where they are added."""

    name = "direct"
    needs_gpu = True
    min_arch = 80

    @staticmethod
    @functools.cache
    def spec(dtype: torch.dtype, size: int) -> KernelSpec:
        """The instance for a dtype and a number of ranks."""
        return peer_spec(
            "moe_direct",
            "direct_combine_kernel",
            size,
            LandingParams,
            DirectCombineParams,
            expect_sass=(),
            T=cpp_type(dtype),
        )

    def supports(self, problem: MoeCombineProblem) -> Support:
        whole = problem.row_bytes % PACKET_BYTES == 0
        return Support.of(
            (problem.dtype in DTYPES, f"adds 16-bit and 32-bit floats, not {problem.dtype}"),
            (whole, f"takes rows of whole {PACKET_BYTES} bytes, not of {problem.row_bytes}"),
        ) & _support(problem)

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
        assert landing is not None, "chosen without memory for the rows"
        target, payload = (x if x.data_ptr() % PACKET_BYTES == 0 else x.clone() for x in (out, payload))
        params = _combine_params(problem, target, payload, slots, counts, landing)
        launch(comm, self.spec(problem.dtype, problem.size), _SHAPE, landing.params, params)
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
        assert landing is not None, "chosen without memory for the rows"
        params = _combine_params(problem, out, payload, slots, counts, landing)
        # Where rows return to lies among the addresses, so it is given with them.
        spec, returned = self.spec(problem.dtype, problem.size), landing.rows_offset
        launch_at = prepare(comm, spec, _SHAPE, landing.params, params, pointers=5)

        def run(
            comm: Communicator,
            out: torch.Tensor,
            payload: torch.Tensor,
            slots: torch.Tensor,
            counts: torch.Tensor,
            landing: Landing,
        ) -> None:
            at_payload, at_out = payload.data_ptr(), out.data_ptr()
            if (at_payload | at_out) % PACKET_BYTES:
                self.run(problem, comm, out, payload, slots, counts, landing)
            else:
                launch_at(at_payload, at_out, returned, slots.data_ptr(), counts.data_ptr())

        return run


def _combine_params(
    problem: MoeCombineProblem, out: torch.Tensor, payload: torch.Tensor, slots: torch.Tensor, counts: torch.Tensor,
    landing: Landing,
) -> DirectCombineParams:  # fmt: skip
    """What a rank launches the combine with."""
    return DirectCombineParams(
        payload=payload,
        output=out,
        returned=landing.rows_offset,
        slots=slots,
        counts=counts,
        tokens=slots.shape[0],
        max_tokens=problem.max_tokens,
        packets=problem.row_bytes // PACKET_BYTES,
        parts=_parts(problem),
    )
