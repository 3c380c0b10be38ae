"""One-shot all-gather: our kernel, every rank's bytes to every peer."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from warploom.comm.backends.peer_kernel import (
    PACKET_BYTES,
    PIECE_BYTES,
    PeerKernel,
    between,
    launch,
    launch_shape,
    peer_spec,
    prepare,
)
from warploom.comm.communicator import Communicator
from warploom.comm.problems.all_gather import AllGatherProblem
from warploom.core.jit import KernelSpec, ParamStruct, i64, ptr

__all__ = ["GatherParams", "OneShotAllGather"]


class GatherParams(ParamStruct):
    """Mirror of the kernel's struct."""

    cpp_name = "warploom::comm::GatherParams"

    input: ptr
    output: ptr
    bytes: i64


class OneShotAllGather(PeerKernel):
    """One trip of packets that are half flags; for small tensors of any dtype."""

    name = "oneshot"

    @staticmethod
    @functools.cache
    def spec(size: int) -> KernelSpec:
        """The instance for a number of ranks."""
        return peer_spec("all_gather", "all_gather_kernel", size, GatherParams)

    def largest_message(self, problem: AllGatherProblem) -> int:
        return problem.half_bytes // (problem.size * PACKET_BYTES) * PIECE_BYTES

    def run(self, problem: AllGatherProblem, comm: Communicator, out: torch.Tensor, x: torch.Tensor) -> None:
        if problem.size == 1 or x.numel() == 0:
            out[0].copy_(x)
            return
        params = GatherParams(input=x, output=out, bytes=x.nbytes)
        launch(comm, self.spec(problem.size), launch_shape(-(-x.nbytes // PIECE_BYTES)), params)

    def bind(
        self, problem: AllGatherProblem, comm: Communicator, out: torch.Tensor, x: torch.Tensor
    ) -> Callable[..., None]:
        if problem.size == 1 or x.numel() == 0:
            return super().bind(problem)
        params = GatherParams(input=None, output=None, bytes=x.nbytes)
        shape = launch_shape(-(-x.nbytes // PIECE_BYTES))
        return between(prepare(comm, self.spec(problem.size), shape, params, pointers=2))
