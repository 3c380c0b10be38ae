"""`MoeAlltoAll`: tokens to the ranks of their experts, and the experts' results back."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from typing import Any

import torch

from warploom.comm.backends.direct.moe_all_to_all import DirectCombine, DirectDispatch
from warploom.comm.backends.mpi.moe_all_to_all import MpiCombine, MpiDispatch
from warploom.comm.backends.nccl.moe_all_to_all import NcclCombine, NcclDispatch
from warploom.comm.backends.oneshot.moe_all_to_all import OneShotCombine, OneShotDispatch
from warploom.comm.backends.reference.moe_all_to_all import ReferenceCombine, ReferenceDispatch
from warploom.comm.collective import RepeatedCollective, agree_on, check_comm, run_into
from warploom.comm.communicator import Communicator
from warploom.comm.handles import find
from warploom.comm.landing import MOST_PAYLOADS, Landing, find_landing
from warploom.comm.problems.all_to_all import row_bytes
from warploom.comm.problems.moe_all_to_all import DispatchTensors, MoeCombineProblem, MoeDispatchProblem, RowPlaces
from warploom.comm.repeated import keep_call
from warploom.comm.repeated_moe import RepeatedDispatch, moe_key
from warploom.core.backends import Backend, Operator
from warploom.core.device import device_guard
from warploom.core.errors import CommunicationError, PerformanceWarning, PlanError
from warploom.core.tensors import Checker
from warploom.core.torch_ops import register_op

__all__ = ["MOE_COMBINE", "MOE_DISPATCH", "MoeAlltoAll"]

MOE_DISPATCH = Operator(
    "moe_dispatch",
    family="comm",
    backends=(DirectDispatch(), OneShotDispatch(), NcclDispatch(), MpiDispatch(), ReferenceDispatch()),
)
MOE_COMBINE = Operator(
    "moe_combine",
    family="comm",
    backends=(DirectCombine(), OneShotCombine(), NcclCombine(), MpiCombine(), ReferenceCombine()),
)

_EXPERT_DTYPES = (torch.int32, torch.int64)
_NEED_NO_LANDING = ("nccl", "mpi", "reference")
_COMBINE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class MoeAlltoAll:
    """Expert parallelism: `dispatch` sends each token once to every rank that owns one of its experts, the caller runs
    the local experts on what arrived, `combine` brings the results back and adds them.

    Rank r owns experts ``r * num_experts / size`` to ``(r + 1) * num_experts / size - 1``.

    Parameters
    ----------
    comm : Communicator
        The ranks.
    max_num_tokens : int
        Most tokens that any rank dispatches in a call.
    top_k : int
        Experts of a token.
    num_experts : int
        Experts of all ranks together, a multiple of the number of ranks.
    backend : str
        "auto", "oneshot" for few tokens, "direct", "nccl", "mpi" or "reference".

    Attributes
    ----------
    recv_counts : torch.Tensor
        int32 ``[size]`` on the device: how many tokens the last dispatch brought from each rank.

    Examples
    --------
    >>> import torch
    >>> from warploom.comm import Communicator, MoeAlltoAll
    >>> moe = MoeAlltoAll(Communicator.single("cpu"), max_num_tokens=4, top_k=1, num_experts=2)
    >>> (tokens,) = moe.dispatch(torch.tensor([[1], [0]], dtype=torch.int32), [torch.eye(2)], 4)
    >>> tokens.shape
    torch.Size([1, 4, 2])
    >>> moe.combine(2 * tokens, 4)
    tensor([[2., 0.],
            [0., 2.]])
    """

    def __init__(
        self, comm: Communicator, max_num_tokens: int, top_k: int, num_experts: int, *, backend: str = "auto"
    ) -> None:
        check = Checker("MoeAlltoAll")
        self.comm = check_comm(check, comm)
        for name, value in (("max_num_tokens", max_num_tokens), ("top_k", top_k), ("num_experts", num_experts)):
            check.require(isinstance(value, int) and value > 0, name, "a positive integer", value)
        check.require(num_experts % comm.size == 0, "num_experts", f"a multiple of the {comm.size} ranks", num_experts)
        check.require(top_k <= num_experts, "top_k", f"at most num_experts = {num_experts}", top_k)
        self.max_num_tokens = max_num_tokens
        self.top_k = top_k
        self.num_experts = num_experts
        self.backend = backend
        self.recv_counts: torch.Tensor | None = None
        self._slots: torch.Tensor | None = None
        self._landings: dict[str, Landing | None] = {}
        self._outgrown: list[Landing] = []

    def dispatch(
        self,
        token_selected_experts: torch.Tensor,
        input_payloads: Sequence[torch.Tensor],
        runtime_max_tokens_per_rank: int,
        invalid_token_expert_id: int | None = None,
        expert_id_payload_index: int | None = None,
    ) -> list[torch.Tensor]:
        """Send tokens to the ranks of their experts.

        Parameters
        ----------
        token_selected_experts : torch.Tensor
            int32 or int64 ``[tokens, top_k]``; numbers outside ``[0, num_experts)`` mean no expert.
        input_payloads : sequence of torch.Tensor
            What travels with each token, ``[tokens, ...]`` of any dtype: hidden states, scales, expert ids, weights.
        runtime_max_tokens_per_rank : int
            At least every rank's ``tokens`` in this call, the same on all ranks.
        invalid_token_expert_id : int, optional
            Replaces, in one received payload, the expert ids of other ranks and those of rows that hold no token.
        expert_id_payload_index : int, optional
            Which payload that is; it must then have the ids, ``[tokens, top_k]``.

        Returns
        -------
        list of torch.Tensor
            For each payload ``[size, runtime_max_tokens_per_rank, ...]``: from each rank, its tokens for this one in
            their order. Rows past ``recv_counts`` are undefined but for sanitised ids. On GPUs that reach one another
            the tensors are views of memory that this object keeps: the next dispatch overwrites them.

        Raises
        ------
        PlanError
            The last dispatch was not combined yet.
        ArgumentError, UnsupportedError, CommunicationError
            As in `all_to_all`.
        """
        experts, rows, landing = token_selected_experts, runtime_max_tokens_per_rank, self._landings.get("dispatch")
        key = self._dispatch_key(experts, input_payloads, rows, invalid_token_expert_id, expert_id_payload_index)
        known = None if key is None else self.comm.repeated.get(key)
        if isinstance(known, RepeatedDispatch) and landing is not None and self._slots is None:
            received, counts, slots = known.dispatch(self.comm, experts, input_payloads, landing)
        else:
            received, counts, slots = self._look_at_dispatch(
                experts, input_payloads, rows, invalid_token_expert_id, expert_id_payload_index
            )
        self.recv_counts, self._slots = counts, slots
        if invalid_token_expert_id is not None and expert_id_payload_index is not None:
            self._sanitise(received[expert_id_payload_index], counts, invalid_token_expert_id)
        return received

    def _look_at_dispatch(
        self, token_selected_experts: torch.Tensor, input_payloads: Sequence[torch.Tensor], rows: int,
        invalid: int | None, ids: int | None,
    ) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:  # fmt: skip
        """`dispatch` of what is not known: the received rows, their numbers and the slots."""
        check = Checker("MoeAlltoAll.dispatch")
        experts = check.tensor("token_selected_experts", token_selected_experts, "tokens top_k", dtype=_EXPERT_DTYPES)
        payloads = [check.tensor(f"input_payloads[{i}]", p, "*") for i, p in enumerate(input_payloads)]
        check_comm(check, self.comm)
        self._check_dispatch(check, experts, payloads, rows)
        if invalid is not None:
            self._check_ids(check, payloads, ids)
        size = self.comm.size
        fits = len(payloads) <= MOST_PAYLOADS
        landing = self._landing("dispatch", experts, sum(map(row_bytes, payloads))) if fits else None
        if landing is None:
            received = [payload.new_empty(size, rows, *payload.shape[1:]) for payload in payloads]
        else:
            received = landing.tensors(rows, payloads)
        counts = experts.new_empty(size, dtype=torch.int32)
        slots = experts.new_empty(experts.shape[0], size, dtype=torch.int32)
        handle = landing.handle if landing else 0
        _dispatch(
            received, counts, slots, experts, payloads, self.num_experts, rows, self.comm.handle, handle, self.backend
        )
        if landing is not None:
            key = self._dispatch_key(experts, payloads, rows, invalid, ids)
            problem = MoeDispatchProblem.of(self.comm, experts, payloads, rows, self.num_experts, True)
            keep_call(
                key, self.comm, RepeatedDispatch, MOE_DISPATCH, problem, self.backend, self.comm,
                DispatchTensors(received, counts, slots, experts, payloads, landing),
            )  # fmt: skip
        return received, counts, slots

    def combine(
        self, payload: torch.Tensor, runtime_max_tokens_per_rank: int, *, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Bring the experts' results back and add those of each token, in float32 and rank order.

        Parameters
        ----------
        payload : torch.Tensor
            float32, float16 or bfloat16 ``[size, runtime_max_tokens_per_rank, hidden]``: the result for each row that
            `dispatch` returned, already weighted and summed over this rank's experts.
        runtime_max_tokens_per_rank : int
            As in `dispatch`.
        out : torch.Tensor, optional
            ``[tokens, hidden]``, receives the sums.

        Returns
        -------
        torch.Tensor
            ``[tokens, hidden]`` in the order of the dispatched tokens; zeros for tokens without an expert.

        Raises
        ------
        PlanError
            Nothing was dispatched.
        """
        if self._slots is None or self.recv_counts is None:
            raise PlanError("MoeAlltoAll.combine: nothing was dispatched; call dispatch first")
        slots, counts, landing = self._slots, self.recv_counts, self._landings.get("combine")
        key = self._combine_key(payload, runtime_max_tokens_per_rank, out, slots)
        known = None if key is None else self.comm.repeated.get(key)
        if isinstance(known, RepeatedCollective):
            out = payload.new_empty(known.shape) if out is None else out
            known.fill(self.comm, out, payload, RowPlaces(slots, counts, landing))
        else:
            out = self._look_at_combine(payload, runtime_max_tokens_per_rank, out, slots, counts)
        self._slots = None
        return out

    def _look_at_combine(
        self, payload: torch.Tensor, rows: int, given: torch.Tensor | None, slots: torch.Tensor, counts: torch.Tensor
    ) -> torch.Tensor:
        """`combine` of what is not known."""
        check = Checker("MoeAlltoAll.combine")
        payload = check.tensor("payload", payload, "ranks rows hidden", dtype=_COMBINE_DTYPES)
        expected = (self.comm.size, rows)
        check.require(
            tuple(payload.shape[:2]) == expected,
            "payload",
            f"[{expected[0]}, {expected[1]}, hidden]",
            tuple(payload.shape),
        )
        check_comm(check, self.comm)
        out = check.output("out", given, (slots.shape[0], payload.shape[2]), payload.dtype)
        landing = self._landing("combine", payload, payload.shape[2] * payload.element_size())
        handle = landing.handle if landing else 0
        _combine(out, payload, slots, counts, self.comm.handle, handle, self.backend)
        if landing is not None:
            key = self._combine_key(payload, rows, given, slots)
            problem = MoeCombineProblem.of(self.comm, payload, True)
            keep_call(
                key, self.comm, RepeatedCollective, MOE_COMBINE, problem, self.backend, self.comm, out, payload,
                RowPlaces(slots, counts, landing),
            )  # fmt: skip
        return out

    @property
    def _limits(self) -> tuple[Any, ...]:
        return self.num_experts, self.top_k, self.max_num_tokens, self.backend

    def _dispatch_key(self, experts: Any, payloads: Any, rows: Any, invalid: Any, ids: Any) -> Hashable | None:
        """What a dispatch is known by; None if it has to be looked at."""
        landing = self._landings.get("dispatch")
        return moe_key(MOE_DISPATCH, self.comm, landing, self._limits, experts, rows, invalid, ids, payloads=payloads)

    def _combine_key(self, payload: Any, rows: Any, out: Any, slots: torch.Tensor) -> Hashable | None:
        """What a combine is known by; None if it has to be looked at."""
        landing = self._landings.get("combine")
        return moe_key(MOE_COMBINE, self.comm, landing, self._limits, payload, rows, out, slots.shape[0])

    def _landing(self, call: str, x: torch.Tensor, row_bytes: int) -> Landing | None:
        """Symmetric memory for the rows of one of the two calls, made anew when rows have grown; None without any."""
        if not x.is_cuda or self.comm.size == 1 or self.comm.why_no_peer_kernels or self.backend in _NEED_NO_LANDING:
            return None
        if not torch.compiler.is_compiling():
            self.comm.require_open(f"moe_{call}")  # a closed one has given the memory back
        landing = self._landings.get(call)
        if call in self._landings and (landing is None or row_bytes <= landing.row_bytes):
            return landing
        if torch.cuda.is_current_stream_capturing():
            raise PlanError(
                f"MoeAlltoAll.{call}: the first call with rows of {row_bytes} bytes allocates memory on all ranks: "
                "make it once before the capture"
            )
        if landing is not None:
            self._outgrown.append(landing)  # a captured graph may use it
        try:
            self._landings[call] = Landing(self.comm, self.max_num_tokens, row_bytes)
        except CommunicationError as error:
            if self.comm.transport.failure:
                raise
            # Raised on all ranks alike: rows go another way.
            warnings.warn(
                f"MoeAlltoAll.{call}: no memory that all ranks map: {error}", PerformanceWarning, stacklevel=3
            )
            self._landings[call] = None
        return self._landings[call]

    def close(self) -> None:
        """Give back the symmetric memory; the next dispatch takes new one. Collective.

        Received tensors and graphs that were captured with this object must not be used any more. Closing the
        communicator gives the memory back, too.
        """
        self.comm.repeated.clear()  # there are views of the memory
        for landing in (*self._outgrown, *self._landings.values()):
            if landing is not None:
                landing.close()
        self._outgrown.clear()
        self._landings.clear()
        self._slots = None

    def _check_dispatch(self, check: Checker, experts: torch.Tensor, payloads: list[torch.Tensor], rows: int) -> None:
        if self._slots is not None:
            raise PlanError("MoeAlltoAll.dispatch: the last dispatch was not combined yet")
        tokens = experts.shape[0]
        check.require(
            experts.shape[1] == self.top_k, "token_selected_experts", f"[tokens, {self.top_k}]", tuple(experts.shape)
        )
        for i, payload in enumerate(payloads):
            fits = payload.dim() >= 1 and payload.shape[0] == tokens
            check.require(fits, f"input_payloads[{i}]", f"[{tokens}, ...]", f"shape {tuple(payload.shape)}")
        check.require(
            tokens <= rows <= self.max_num_tokens, "runtime_max_tokens_per_rank",
            f"from {tokens} tokens to max_num_tokens = {self.max_num_tokens}", rows,
        )  # fmt: skip

    def _check_ids(self, check: Checker, payloads: list[torch.Tensor], index: int | None) -> None:
        name = "expert_id_payload_index"
        found = index is not None and 0 <= index < len(payloads)
        check.require(found, name, f"the index of one of the {len(payloads)} payloads", index)
        ids = payloads[index or 0]
        fits = ids.dim() == 2 and ids.dtype in _EXPERT_DTYPES
        check.require(fits, name, "that of int32 or int64 ids [tokens, top_k]", f"{ids.dtype} {tuple(ids.shape)}")

    def _sanitise(self, ids: torch.Tensor, counts: torch.Tensor, invalid: int) -> None:
        """Replace, in ``ids [size, rows, top_k]``, those that are not this rank's business."""
        landing, rows = self._landings.get("dispatch"), ids.shape[1]
        places = torch.arange(rows, device=ids.device) if landing is None else landing.places[:rows]
        empty = places >= counts.unsqueeze(1)  # [size, rows]
        foreign = ids // (self.num_experts // self.comm.size) != self.comm.rank  # of no expert, too
        ids.masked_fill_(foreign | empty.unsqueeze(-1), invalid)


@register_op(
    "moe_dispatch(Tensor(a!)[] received, Tensor(b!) counts, Tensor(c!) slots, Tensor experts, Tensor[] payloads, "
    "int num_experts, int max_tokens, int comm, int landing, str backend) -> ()"
)
def _dispatch(
    received: list[torch.Tensor], counts: torch.Tensor, slots: torch.Tensor, experts: torch.Tensor,
    payloads: list[torch.Tensor], num_experts: int, max_tokens: int, comm: int, landing: int, backend: str,
) -> None:  # fmt: skip
    communicator = find(comm, "moe_dispatch")
    problem = MoeDispatchProblem.of(communicator, experts, payloads, max_tokens, num_experts, landing > 0)
    rows = [(str(payload.dtype), tuple(payload.shape[1:])) for payload in payloads]
    agree_on(communicator, "moe_dispatch", (rows, max_tokens, num_experts, problem.top_k, backend), not experts.is_cuda)
    chosen = MOE_DISPATCH.select(problem, backend).backend
    with device_guard(experts):
        tensors = DispatchTensors(received, counts, slots, experts, payloads, find_landing(landing))
        chosen.run(problem, communicator, tensors)


@register_op(
    "moe_combine(Tensor(a!) out, Tensor payload, Tensor slots, Tensor counts, int comm, int landing, str backend) -> ()"
)
def _combine(
    out: torch.Tensor, payload: torch.Tensor, slots: torch.Tensor, counts: torch.Tensor, comm: int, landing: int,
    backend: str,
) -> None:  # fmt: skip
    communicator = find(comm, "moe_combine")
    problem = MoeCombineProblem.of(communicator, payload, landing > 0)
    agree_on(communicator, "moe_combine", (str(payload.dtype), tuple(payload.shape), backend), not payload.is_cuda)

    def run(chosen: Backend, buffer: torch.Tensor) -> None:
        places = RowPlaces(slots, counts, find_landing(landing))
        chosen.run(problem, communicator, buffer, payload.contiguous(), places)

    run_into(MOE_COMBINE, problem, backend, out, run)
