"""All-to-all and all-gather by one kernel: chunks through rings of slots in peer memory, so messages may be of any size."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Annotated

import torch

from warploom.comm.backends.peer_kernel import MAX_THREADS, launch, peer_spec, prepare
from warploom.comm.communicator import Communicator
from warploom.comm.peer_workspace import CHUNK_BYTES, MAX_BLOCKS, SLOTS
from warploom.comm.problems.base import CommProblem
from warploom.comm.topology import MAX_PEERS
from warploom.core.backends import Backend, Support
from warploom.core.jit import KernelSpec, ParamStruct, i64, ptr

__all__ = ["ExchangeParams", "PeerExchange", "all_gather_params", "all_to_all_params", "exchange_spec", "offsets"]

# Ranks must launch alike and each knows only its own counts, so that sizes decide nothing.
_SHAPE = MAX_BLOCKS, MAX_THREADS


class ExchangeParams(ParamStruct):
    """Mirror of the kernel's struct."""

    cpp_name = "warploom::comm::ExchangeParams"

    inputs: Annotated[ptr, MAX_PEERS]
    outputs: Annotated[ptr, MAX_PEERS]
    sent_bytes: Annotated[i64, MAX_PEERS]
    received_bytes: Annotated[i64, MAX_PEERS]


@functools.cache
def exchange_spec(size: int) -> KernelSpec:
    """The instance for a number of ranks."""
    return peer_spec(
        "exchange",
        "exchange_kernel",
        size,
        ExchangeParams,
        expect_sass=("LDG.E.128", "STG.E.128", "LDG.E.STRONG.SYS", "STG.E.STRONG.SYS", "MEMBAR"),
        kChunkBytes=CHUNK_BYTES,
        kSlots=SLOTS,
    )


def all_to_all_params(
    out: torch.Tensor, x: torch.Tensor, received: Sequence[int], sent: Sequence[int], row_bytes: int
) -> ExchangeParams:
    """What a rank launches to send so many rows to each rank and to receive so many of each."""
    sent_bytes, received_bytes = ([row_bytes * rows for rows in counts] for counts in (sent, received))
    return _params(_parts(x, sent_bytes), _parts(out, received_bytes), sent_bytes, received_bytes)


def all_gather_params(out: torch.Tensor, x: torch.Tensor) -> ExchangeParams:
    """What a rank launches to send ``x`` to every rank and to receive ``out [size, *x.shape]``."""
    each = [x.nbytes] * out.shape[0]
    return _params([x.data_ptr()] * len(each), _parts(out, each), each, each)


def _parts(x: torch.Tensor, nbytes: list[int]) -> list[int]:
    """Where the parts of each rank begin."""
    begin = x.data_ptr()
    return [begin + offset for offset in offsets(nbytes)]


def offsets(nbytes: list[int]) -> list[int]:
    """Where the parts of each rank begin, behind one another."""
    return list(accumulate(nbytes[:-1], initial=0))


def _params(inputs: list[int], outputs: list[int], sent: list[int], received: list[int]) -> ExchangeParams:
    unused = [0] * (MAX_PEERS - len(sent))
    return ExchangeParams(
        inputs=[*inputs, *unused],
        outputs=[*outputs, *unused],
        sent_bytes=[*sent, *unused],
        received_bytes=[*received, *unused],
    )


class PeerExchange(Backend):
    """Base of the backends of both operators. Needs staging memory, whatever the size of the mailboxes."""

    name = "exchange"
    needs_gpu = True
    min_arch = 80

    def supports(self, problem: CommProblem) -> Support:
        return Support.of((problem.size == 1 or not problem.no_peer_kernels, problem.no_peer_kernels))

    @staticmethod
    def exchange(comm: Communicator, params: ExchangeParams) -> None:
        """Launch the kernel."""
        launch(comm, exchange_spec(comm.size), _SHAPE, params)

    @staticmethod
    def prepare(comm: Communicator, params: ExchangeParams) -> Callable[..., None]:
        """`exchange` again and again with the addresses that the parts of each rank are sent from and received at."""
        size = comm.size
        launch_at = prepare(comm, exchange_spec(size), _SHAPE, params, pointers=2 * MAX_PEERS)
        unused = [0] * (MAX_PEERS - size)

        def exchange_at(inputs: list[int], outputs: list[int]) -> None:
            launch_at(*inputs, *unused, *outputs, *unused)

        return exchange_at
