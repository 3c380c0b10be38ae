"""What the all-reduce kernels over peer memory share: support, launch shape, launch."""

from __future__ import annotations

import functools
from abc import abstractmethod
from typing import ClassVar

import torch

from warploom.comm.communicator import Communicator
from warploom.comm.peer_workspace import MAX_BLOCKS, Mailboxes
from warploom.comm.problems.all_reduce import AllReduceProblem
from warploom.core.backends import Backend, Support
from warploom.core.jit import KernelSpec, ParamStruct, cpp_type, i64, ptr

__all__ = ["DTYPES", "PACKET_BYTES", "AllReduceParams", "PeerAllReduce", "launch_shape", "spec"]

PACKET_BYTES = 16
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MAX_THREADS = 512
_MIN_THREADS = 128


class AllReduceParams(ParamStruct):
    """Mirror of the kernels' struct."""

    cpp_name = "warploom::comm::AllReduceParams"

    input: ptr
    output: ptr
    numel: i64


@functools.cache
def spec(kernel: str, dtype: torch.dtype, size: int) -> KernelSpec:
    """The instance of one of the kernels for a dtype and a number of ranks."""
    return KernelSpec(
        family="comm",
        header="warploom/comm/all_reduce.cuh",
        kernel=kernel,
        config={"T": cpp_type(dtype), "kRanks": size, "kMaxThreads": _MAX_THREADS},
        params=(Mailboxes, AllReduceParams),
        expect_sass=("STG.E.128.STRONG.SYS", "LDG.E.128.STRONG.SYS"),
    )


def launch_shape(packets: int) -> tuple[int, int]:
    """Blocks and threads for the packets that one rank handles: first more blocks, then more threads a block.

    Depends on nothing else, so that all ranks launch alike.
    """
    blocks = min(MAX_BLOCKS, -(-packets // _MIN_THREADS))
    threads = -(-packets // blocks)
    return blocks, min(_MAX_THREADS, max(_MIN_THREADS, -(-threads // 32) * 32))


class PeerAllReduce(Backend):
    """Base of the kernels over mailboxes: sums in float32 in rank order, the same bits on every rank."""

    needs_gpu = True
    min_arch = 80
    kernel: ClassVar[str]

    @abstractmethod
    def largest_message(self, problem: AllReduceProblem) -> int:
        """Bytes of a message that the mailboxes hold."""

    @abstractmethod
    def packets_of_rank(self, problem: AllReduceProblem) -> int:
        """Packets that a rank reduces, one thread each if there are enough."""

    @staticmethod
    def packets(nbytes: int) -> int:
        """Packets of a message."""
        return -(-nbytes // PACKET_BYTES)

    def supports(self, problem: AllReduceProblem) -> Support:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        serves = Support.of(
            (problem.op == "sum", f"computes op='sum', not {problem.op!r}"),
            (problem.dtype in DTYPES, f"takes {names}, not {str(problem.dtype).removeprefix('torch.')}"),
        )
        if problem.size == 1:
            return serves
        if problem.no_peer_kernels:
            return serves & Support((problem.no_peer_kernels,))
        largest = self.largest_message(problem)
        reason = (
            f"takes up to {largest} bytes with this workspace, got {problem.nbytes}; more workspace_bytes lift that"
        )
        return serves & Support.of((problem.nbytes <= largest, reason))

    def run(self, problem: AllReduceProblem, comm: Communicator, out: torch.Tensor, x: torch.Tensor) -> None:
        workspace = comm.peer_workspace
        if workspace is None or x.numel() == 0:  # one rank, or nothing to send
            out.copy_(x)
            return
        workspace.follow_stream()
        blocks, threads = launch_shape(self.packets_of_rank(problem))
        params = AllReduceParams(input=x, output=out, numel=x.numel())
        kernel = spec(self.kernel, problem.dtype, problem.size).load(comm.device)
        kernel.launch(blocks, threads, workspace.arguments, params)
