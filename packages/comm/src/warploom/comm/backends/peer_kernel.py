"""What the kernels over peer memory share: support, launch shape, launch."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch

from warploom.comm.communicator import Communicator
from warploom.comm.peer_workspace import MAX_BLOCKS, Mailboxes
from warploom.core.backends import Backend, Support
from warploom.core.device import arch_number
from warploom.core.jit import KernelSpec, ParamStruct, cpp_type, i64, ptr

__all__ = [
    "DTYPES",
    "MAX_THREADS",
    "PACKET_ACCESSES",
    "PACKET_BYTES",
    "PIECE_BYTES",
    "Message",
    "PeerKernel",
    "PeerReduction",
]
__all__ += ["launch", "launch_shape", "peer_spec", "prepare"]

PACKET_BYTES = 16
PIECE_BYTES = 8  # of a packet whose other half are flags, because bytes may have any pattern
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_THREADS = 512
_MIN_THREADS = 128
_LONG = 8 << 20  # bytes of a message, from which on stages overlap
_REGISTERS_FOR = 4  # ranks, whose packets fit the registers of the most threads when stages overlap


class Message(ParamStruct):
    """Mirror of the struct of the kernels that reduce."""

    cpp_name = "warploom::comm::Message"

    input: ptr
    output: ptr
    numel: i64


PACKET_ACCESSES = ("STG.E.128.STRONG.SYS", "LDG.E.128.STRONG.SYS")


def peer_spec(
    header: str,
    kernel: str,
    size: int,
    *params: type[ParamStruct],
    expect_sass: tuple[str, ...] = PACKET_ACCESSES,
    threads: int = MAX_THREADS,
    **config: Any,
) -> KernelSpec:
    """The instance of a kernel for a number of ranks."""
    return KernelSpec(
        family="comm",
        header=f"warploom/comm/{header}.cuh",
        kernel=f"warploom::comm::{kernel}",
        config={**config, "kRanks": size, "kMaxThreads": threads},
        params=(Mailboxes, *params),
        expect_sass=expect_sass,
    )


def launch_shape(packets: int) -> tuple[int, int]:
    """Blocks and threads for the packets that one rank handles: first more blocks, then more threads a block.

    Depends on nothing else, so that all ranks launch alike.
    """
    blocks = min(MAX_BLOCKS, -(-packets // _MIN_THREADS))
    threads = -(-packets // blocks)
    return blocks, min(MAX_THREADS, max(_MIN_THREADS, -(-threads // 32) * 32))


def _long_shape(size: int) -> tuple[int, int]:
    """The launch for long messages."""
    return MAX_BLOCKS, MAX_THREADS if size <= _REGISTERS_FOR else MAX_THREADS // 2


def _is_dependent(comm: Communicator) -> bool:
    """Whether kernels are launched as dependent ones, which may start while the last one ends."""
    return arch_number(comm.device) >= 90


def launch(comm: Communicator, spec: KernelSpec, shape: tuple[int, int], *params: ParamStruct) -> None:
    """Launch so many blocks and threads of a kernel over peer memory on the current stream."""
    workspace = comm.peer_workspace
    assert workspace is not None, "a kernel was chosen without mailboxes"
    workspace.follow_stream()
    spec.load(comm.device).launch(*shape, workspace.arguments, *params, pdl=_is_dependent(comm))


def prepare(
    comm: Communicator, spec: KernelSpec, shape: tuple[int, int], *params: ParamStruct, pointers: int
) -> Callable[..., None]:
    """`launch` again and again with other addresses, which are the first so many fields of the last parameters."""
    workspace = comm.peer_workspace
    assert workspace is not None, "a kernel was chosen without mailboxes"
    kernel = spec.load(comm.device)
    prepared = kernel.prepare(
        *shape, workspace.arguments, *params, pointers=pointers, parameter=len(params), pdl=_is_dependent(comm)
    )

    def launch_at(*addresses: int) -> None:
        workspace.follow_stream()
        prepared.launch(*addresses)

    return launch_at


class PeerKernel(Backend):
    """Base of the kernels over mailboxes."""

    needs_gpu = True
    min_arch = 80

    @abstractmethod
    def largest_message(self, problem: Any) -> int:
        """The most that `problem.nbytes` may be for what the mailboxes hold."""

    def conditions(self, problem: Any) -> Support:
        """What a problem must be besides small enough."""
        return Support()

    def supports(self, problem: Any) -> Support:
        serves = self.conditions(problem)
        if problem.size == 1:
            return serves
        if problem.no_peer_kernels:
            return serves & Support((problem.no_peer_kernels,))
        largest = self.largest_message(problem)
        reason = (
            f"takes up to {largest} bytes with this workspace, got {problem.nbytes}; more workspace_bytes lift that"
        )
        return serves & Support.of((problem.nbytes <= largest, reason))


def between(launch_at: Callable[..., None]) -> Callable[..., None]:
    """A bound `run` of a backend that fills one tensor from another, of a launch at their addresses."""

    def run(comm: Communicator, out: torch.Tensor, x: torch.Tensor) -> None:
        launch_at(x.data_ptr(), out.data_ptr())

    return run


class PeerReduction(PeerKernel):
    """Base of those that sum: in float32 in rank order, the same bits on every rank."""

    header: ClassVar[str]
    kernel: ClassVar[str]
    has_stages: ClassVar[bool] = False  # which overlap in long messages

    @classmethod
    @functools.cache
    def spec(cls, dtype: torch.dtype, size: int, long: bool = False) -> KernelSpec:
        """The instance for a dtype and a number of ranks, of two kinds if there are stages."""
        config: dict[str, Any] = {"T": cpp_type(dtype)}
        if cls.has_stages:
            config["kLong"] = long
        threads = _long_shape(size)[1] if long else MAX_THREADS
        return peer_spec(cls.header, cls.kernel, size, Message, threads=threads, **config)

    def _launch(self, problem: Any) -> tuple[KernelSpec, tuple[int, int]]:
        """The kernel and how to launch it."""
        if self.has_stages and problem.nbytes >= _LONG:
            return self.spec(problem.dtype, problem.size, True), _long_shape(problem.size)
        return self.spec(problem.dtype, problem.size), launch_shape(self.packets_of_rank(problem))

    @abstractmethod
    def packets_of_rank(self, problem: Any) -> int:
        """Packets that a rank reduces, one thread each if there are enough."""

    @staticmethod
    def packets(nbytes: int) -> int:
        """Packets of a message."""
        return -(-nbytes // PACKET_BYTES)

    def conditions(self, problem: Any) -> Support:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        return Support.of(
            (problem.op == "sum", f"computes op='sum', not {problem.op!r}"),
            (problem.dtype in DTYPES, f"takes {names}, not {str(problem.dtype).removeprefix('torch.')}"),
        )

    def run(self, problem: Any, comm: Communicator, out: torch.Tensor, x: torch.Tensor) -> None:
        if problem.size == 1 or x.numel() == 0:  # one rank, or nothing to send
            out.copy_(x)
            return
        message = Message(input=x, output=out, numel=out.numel())
        launch(comm, *self._launch(problem), message)

    def bind(self, problem: Any, comm: Communicator, out: torch.Tensor, x: torch.Tensor) -> Callable[..., None]:
        if problem.size == 1 or x.numel() == 0:
            return super().bind(problem)
        message = Message(input=None, output=None, numel=out.numel())
        return between(prepare(comm, *self._launch(problem), message, pointers=2))
