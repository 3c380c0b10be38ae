"""What the expert-parallel kernels over peer memory share: placing tokens, parameters, launches that repeat."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch

from warploom.comm.backends.peer_kernel import DTYPES, PACKET_ACCESSES, PACKET_BYTES, peer_spec, prepare
from warploom.comm.communicator import Communicator
from warploom.comm.landing import MOST_PAYLOADS, Landing
from warploom.comm.problems.all_to_all import row_bytes
from warploom.comm.problems.moe_all_to_all import DispatchTensors, MoeCombineProblem, MoeDispatchProblem, RowPlaces
from warploom.core.backends import Backend, Support
from warploom.core.jit import KernelSpec, ParamStruct, cpp_type, i32, ptr

__all__ = ["PeerCombine", "PeerDispatch", "PeerMoe", "RoutingParams", "routing_spec"]

_ROUTING_THREADS = 1024


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


def _prepare_routing(
    problem: MoeDispatchProblem, comm: Communicator, experts: torch.Tensor
) -> Callable[[int, int, int], None]:
    """The launch that places tokens, given the addresses of experts, slots and numbers of tokens sent."""
    params = RoutingParams(
        experts=None,
        slots=None,
        sent=None,
        tokens=experts.shape[0],
        top_k=problem.top_k,
        num_experts=problem.num_experts,
        words=experts.element_size() // 4,
    )
    kernel = routing_spec(problem.size).load(comm.device)
    return kernel.prepare(1, _ROUTING_THREADS, params, pointers=3, pdl=problem.arch >= 90).launch


class PeerMoe(Backend):
    """Base: kernels for several ranks of a host.

    Attributes
    ----------
    header, kernel : str
        Where the kernel stands.
    shared_types, params : types
        The mirrors of its structs: those of several kernels, and its own.
    accesses : tuple of str
        What its machine code must hold.
    """

    needs_gpu = True
    min_arch = 80
    header: ClassVar[str]
    kernel: ClassVar[str]
    shared_types: ClassVar[tuple[type[ParamStruct], ...]] = ()
    params: ClassVar[type[ParamStruct]]
    accesses: ClassVar[tuple[str, ...]] = PACKET_ACCESSES

    def run(self, problem: Any, comm: Communicator, *tensors: Any) -> None:
        self.bind(problem, comm, *tensors)(comm, *tensors)

    @abstractmethod
    def memory(self, problem: Any) -> Support:
        """Whether there is memory at the peers for the rows."""

    def supports(self, problem: Any) -> Support:
        serves = self.conditions(problem)
        if problem.no_peer_kernels:
            return serves & Support((problem.no_peer_kernels,))
        several = Support.of((problem.size > 1, "moves rows between ranks, there is one"))
        return serves & several & self.memory(problem)

    @abstractmethod
    def conditions(self, problem: Any) -> Support:
        """What else a problem must be."""

    @abstractmethod
    def shape(self, problem: Any) -> tuple[int, int]:
        """Blocks and threads, the same on all ranks."""

    def shared_params(self, landing: Landing | None) -> tuple[ParamStruct, ...]:
        """What `shared_types` are for memory where rows land."""
        return ()


class PeerDispatch(PeerMoe):
    """One launch to place tokens and one to move them."""

    @classmethod
    @functools.cache
    def spec(cls, size: int) -> KernelSpec:
        """The instance for a number of ranks."""
        return peer_spec(cls.header, cls.kernel, size, *cls.shared_types, cls.params, expect_sass=cls.accesses)

    def conditions(self, problem: MoeDispatchProblem) -> Support:
        few = problem.payloads <= MOST_PAYLOADS
        return Support.of((few, f"takes up to {MOST_PAYLOADS} payloads, got {problem.payloads}"))

    @abstractmethod
    def destinations(self, received: list[torch.Tensor], landing: Landing | None) -> list[int]:
        """Where the rows of each payload go, as the kernel takes it."""

    @abstractmethod
    def division(self, problem: MoeDispatchProblem, row_bytes: list[int]) -> dict[str, int]:
        """The parameters that say how rows are cut."""

    def bind(
        self, problem: MoeDispatchProblem, comm: Communicator, tensors: DispatchTensors
    ) -> Callable[[Communicator, DispatchTensors], None]:
        payloads, landing = tensors.payloads, tensors.landing
        none = [0] * (MOST_PAYLOADS - len(payloads))
        of_rows = [row_bytes(payload) for payload in payloads]
        # Between the addresses of the payloads and those of the numbers.
        known = (*none, *self.destinations(tensors.received, landing), *none, *of_rows, *none)
        params = self.params(
            payloads=[0] * MOST_PAYLOADS,
            received=[0] * MOST_PAYLOADS,
            row_bytes=[0] * MOST_PAYLOADS,
            slots=None,
            sent=None,
            counts=None,
            tokens=tensors.slots.shape[0],
            max_tokens=problem.max_tokens,
            num_payloads=len(payloads),
            **self.division(problem, of_rows),
        )
        size, shared = problem.size, self.shared_params(landing)
        place = _prepare_routing(problem, comm, tensors.experts)
        move = prepare(comm, self.spec(size), self.shape(problem), *shared, params, pointers=3 * MOST_PAYLOADS + 3)

        def run(comm: Communicator, tensors: DispatchTensors) -> None:
            # Copies of what is not contiguous have to live until they are read in the order of the stream.
            experts, payloads = tensors.experts.contiguous(), [payload.contiguous() for payload in tensors.payloads]
            sent = tensors.slots.new_empty(size)
            at_slots, at_sent = tensors.slots.data_ptr(), sent.data_ptr()
            place(experts.data_ptr(), at_slots, at_sent)
            addresses = [payload.data_ptr() for payload in payloads]
            move(*addresses, *known, at_slots, at_sent, tensors.counts.data_ptr())

        return run


class PeerCombine(PeerMoe):
    """One launch to send results back and to add them."""

    @classmethod
    @functools.cache
    def spec(cls, dtype: torch.dtype, size: int) -> KernelSpec:
        """The instance for a dtype and a number of ranks."""
        types = (*cls.shared_types, cls.params)
        return peer_spec(cls.header, cls.kernel, size, *types, expect_sass=cls.accesses, T=cpp_type(dtype))

    def conditions(self, problem: MoeCombineProblem) -> Support:
        whole = problem.row_bytes % PACKET_BYTES == 0
        return Support.of(
            (problem.dtype in DTYPES, f"adds 16-bit and 32-bit floats, not {problem.dtype}"),
            (whole, f"takes rows of whole {PACKET_BYTES} bytes, not of {problem.row_bytes}"),
        )

    def more(self, problem: MoeCombineProblem, landing: Landing | None) -> dict[str, int]:
        """The parameters beside those of every combine."""
        return {}

    def bind(
        self,
        problem: MoeCombineProblem,
        comm: Communicator,
        out: torch.Tensor,
        payload: torch.Tensor,
        places: RowPlaces,
    ) -> Callable[[Communicator, torch.Tensor, torch.Tensor, RowPlaces], None]:
        params = self.params(
            payload=None,
            output=None,
            slots=None,
            counts=None,
            tokens=places.slots.shape[0],
            max_tokens=problem.max_tokens,
            packets=problem.row_bytes // PACKET_BYTES,
            **self.more(problem, places.landing),
        )
        spec, shared = self.spec(problem.dtype, problem.size), self.shared_params(places.landing)
        launch_at = prepare(comm, spec, self.shape(problem), *shared, params, pointers=4)

        def run(comm: Communicator, out: torch.Tensor, payload: torch.Tensor, places: RowPlaces) -> None:
            target, source = (x if x.data_ptr() % PACKET_BYTES == 0 else x.clone() for x in (out, payload))
            launch_at(source.data_ptr(), target.data_ptr(), places.slots.data_ptr(), places.counts.data_ptr())
            if target is not out:
                out.copy_(target)

        return run
