"""Fused all-reduce over peer memory in one kernel; tensors that it does not take go through the all-reduce's and torch."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any, ClassVar

import torch

from warploom.comm.backends.composed_fusion import ComposedFusion
from warploom.comm.backends.peer_kernel import PACKET_BYTES, launch, peer_spec, prepare
from warploom.comm.communicator import Communicator
from warploom.comm.epilogue import FusionTensors
from warploom.comm.peer_workspace import MAX_BLOCKS
from warploom.comm.problems.fusion import FusionProblem
from warploom.core.backends import Support
from warploom.core.jit import KernelSpec, ParamStruct, cpp_type, f32, i64, ptr

__all__ = ["FusionParams", "PeerFusion", "fits_kernel", "fusion_params", "row_support"]

_MAX_THREADS = 512
_MOST_BYTES = 4 * _MAX_THREADS * PACKET_BYTES  # of a row: what a thread keeps in registers
_WARP = 32
_SCALES = ("", "tensor", "token", "group")  # Scales of fusion.cuh
_POINTERS = ("input", "output", "residual", "residual_out", "gamma", "norm_out", "codes", "scales")


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
        launch(comm, spec, self._shape(problem, spec), fusion_params(problem, tensors))

    def bind(self, problem: FusionProblem, comm: Communicator, tensors: FusionTensors) -> Callable[..., None]:
        if not fits_kernel(problem, tensors):
            return super().bind(problem)
        spec = self.spec_of(problem)
        params = fusion_params(problem, tensors)
        launch_at = prepare(comm, spec, self._shape(problem, spec), params, len(_POINTERS))

        def run(comm: Communicator, tensors: FusionTensors) -> None:
            addresses = [0 if tensor is None else tensor.data_ptr() for tensor in kernel_tensors(tensors)]
            *packets, _ = addresses
            if functools.reduce(operator.or_, packets) % PACKET_BYTES:
                self.run(problem, comm, tensors)
            else:
                launch_at(*addresses)

        return run

    @staticmethod
    def _shape(problem: FusionProblem, spec: KernelSpec) -> tuple[int, int]:
        return min(MAX_BLOCKS, problem.tokens), int(spec.config["kThreads"])


def kernel_tensors(tensors: FusionTensors) -> tuple[torch.Tensor | None, ...]:
    """What the kernels read and write, in the order of `_POINTERS`."""
    return (
        tensors.input,
        tensors.output,
        tensors.residual_in,
        tensors.residual_out,
        tensors.rms_gamma,
        tensors.norm_out,
        tensors.quant_out,
        tensors.scale_factor if tensors.scale_out is None else tensors.scale_out,
    )


def fusion_params(problem: FusionProblem, tensors: FusionTensors) -> FusionParams:
    """What a rank launches a kernel with."""
    pointers = dict(zip(_POINTERS, kernel_tensors(tensors), strict=True))
    return FusionParams(**pointers, tokens=problem.tokens, eps=tensors.rms_eps, gamma_bias=tensors.weight_bias)


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
    *packets, _ = kernel_tensors(tensors)  # scales may begin anywhere
    given = [tensor for tensor in packets if tensor is not None]
    of_type = (tensors.residual_in, tensors.rms_gamma)
    return (
        problem.size > 1
        and problem.tokens > 0
        and all(tensor.is_contiguous() and tensor.data_ptr() % PACKET_BYTES == 0 for tensor in given)
        and all(tensor is None or tensor.dtype == problem.dtype for tensor in of_type)
        and (tensors.scale_out is None or tensors.scale_out.is_contiguous())
    )
