"""Fused all-reduce over peer memory in one kernel; tensors that it does not take go through the all-reduce's and torch."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import torch

from warploom.comm.backends.composed_fusion import ComposedFusion
from warploom.comm.backends.peer_kernel import PACKET_BYTES, launch, peer_spec
from warploom.comm.communicator import Communicator
from warploom.comm.epilogue import FusionTensors
from warploom.comm.peer_workspace import MAX_BLOCKS
from warploom.comm.problems.fusion import FusionProblem
from warploom.core.backends import Support
from warploom.core.jit import KernelSpec, ParamStruct, cpp_type, f32, i32, i64, ptr

__all__ = ["FusionParams", "PeerFusion", "fits_kernel", "fusion_params", "row_support"]

_MAX_THREADS = 512
_MOST_BYTES = 4 * _MAX_THREADS * PACKET_BYTES  # of a row: what a thread keeps in registers
_WARP = 32
_SCALES = ("", "tensor", "token", "group")  # Scales of fusion.cuh


class FusionParams(ParamStruct):
    """Mirror of the kernels' struct."""

    cpp_name = "warploom::comm::FusionParams"

    input: ptr
    output: ptr
    residual: ptr
    residual_out: ptr
    gamma: ptr
    norm_out: ptr
    codes: ptr
    scales: ptr
    tokens: i64
    reducers: i32
    eps: f32
    gamma_bias: f32


class PeerFusion(ComposedFusion):
    """Base: a block computes whole rows, which it keeps in registers."""

    kernel: ClassVar[str]

    def supports(self, problem: FusionProblem) -> Support:
        return super().supports(problem) & row_support(problem)

    @classmethod
    @functools.cache
    def spec(cls, dtype: torch.dtype, size: int, hidden: int, normalises: bool, scales: str, group: int) -> KernelSpec:
        """The instance for rows of `hidden` columns."""
        packets = hidden * dtype.itemsize // PACKET_BYTES
        threads = min(_MAX_THREADS, -(-packets // _WARP) * _WARP)
        config: dict[str, Any] = {
            "T": cpp_type(dtype),
            "kPackets": packets,
            "kThreads": threads,
            "kNormalises": normalises,
            "kScalesNumber": _SCALES.index(scales),
            "kGroupPackets": max(1, group * dtype.itemsize // PACKET_BYTES),
        }
        if scales:
            config["Code"] = cpp_type(torch.float8_e4m3fn)
        return peer_spec("fusion_fp8" if scales else "fusion", cls.kernel, size, FusionParams, **config)

    @classmethod
    def spec_of(cls, problem: FusionProblem) -> KernelSpec:
        """The instance for a problem."""
        pattern = problem.pattern
        return cls.spec(
            problem.dtype, problem.size, problem.hidden, pattern.normalises, pattern.quantisation, problem.group_size
        )

    def run(self, problem: FusionProblem, comm: Communicator, tensors: FusionTensors) -> None:
        if not fits_kernel(problem, tensors):
            super().run(problem, comm, tensors)
            return
        spec = self.spec_of(problem)
        threads = int(spec.config["kThreads"])
        finishers, reducers = self.blocks(problem, threads)
        launch(comm, spec, (reducers + finishers, threads), fusion_params(problem, tensors, reducers))

    @staticmethod
    def blocks(problem: FusionProblem, threads: int) -> tuple[int, int]:
        """How many blocks finish rows, and how many others sum before."""
        return min(MAX_BLOCKS, problem.tokens), 0


def fusion_params(problem: FusionProblem, tensors: FusionTensors, reducers: int = 0) -> FusionParams:
    """What a rank launches a kernel with; `reducers` blocks sum, in two trips."""
    return FusionParams(
        input=tensors.input,
        output=tensors.output,
        residual=tensors.residual_in,
        residual_out=tensors.residual_out,
        gamma=tensors.rms_gamma,
        norm_out=tensors.norm_out,
        codes=tensors.quant_out,
        scales=tensors.scale_factor if tensors.scale_out is None else tensors.scale_out,
        tokens=problem.tokens,
        reducers=reducers,
        eps=tensors.rms_eps,
        gamma_bias=tensors.weight_bias,
    )


def row_support(problem: FusionProblem) -> Support:
    """Rows are whole packets that a block keeps in registers, and groups whole parts of a warp."""
    row_bytes, group_bytes = (columns * problem.dtype.itemsize for columns in (problem.hidden, problem.group_size))
    groups = tuple(PACKET_BYTES << i for i in range(_WARP.bit_length()))
    return Support.of(
        (row_bytes % PACKET_BYTES == 0, f"takes rows of whole {PACKET_BYTES} bytes, not of {row_bytes}"),
        (row_bytes <= _MOST_BYTES, f"takes rows of up to {_MOST_BYTES} bytes, not of {row_bytes}"),
        (
            not group_bytes or group_bytes in groups,
            f"takes groups of 16, 32, ... or {groups[-1]} bytes, not {group_bytes}",
        ),
    )


def fits_kernel(problem: FusionProblem, tensors: FusionTensors) -> bool:
    """Whether the tensors are contiguous, aligned and of one type, and there is something to reduce."""
    wanted = (
        tensors.input,
        tensors.output,
        tensors.residual_in,
        tensors.residual_out,
        tensors.rms_gamma,
        tensors.norm_out,
        tensors.quant_out,
    )
    given = [tensor for tensor in wanted if tensor is not None]
    of_type = (tensors.residual_in, tensors.rms_gamma)
    return (
        problem.size > 1
        and problem.tokens > 0
        and all(tensor.is_contiguous() and tensor.data_ptr() % PACKET_BYTES == 0 for tensor in given)
        and all(tensor is None or tensor.dtype == problem.dtype for tensor in of_type)
        and (tensors.scale_out is None or tensors.scale_out.is_contiguous())
    )
