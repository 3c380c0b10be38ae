"""Fused all-reduce over peer memory in one kernel; types that it does not take go through the all-reduce's and torch."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, ClassVar

import torch

from warploom.comm.backends.composed_fusion import ComposedFusion
from warploom.comm.backends.peer_kernel import PACKET_BYTES, launch, peer_spec, prepare
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
_OUTPUTS = ("output", "residual_out", "norm_out", "quant_out", "scale_out")
_SCALARS = ("scale_out", "scale_factor")  # read and written one by one
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
        if not is_reduced(problem, tensors):
            super().run(problem, comm, tensors)
            return
        spec = self.spec_of(problem)
        reducers, shape = self._shape(problem, spec)
        # Only this rank may have tensors that lie in another way: it must launch the same kernel all the same.
        packed = in_packets(tensors)
        launch(comm, spec, shape, fusion_params(problem, packed, reducers))
        for name in _OUTPUTS:
            wanted, written = getattr(tensors, name), getattr(packed, name)
            if written is not wanted:
                wanted.copy_(written)

    def bind(self, problem: FusionProblem, comm: Communicator, tensors: FusionTensors) -> Callable[..., None]:
        if not fits_kernel(problem, tensors):
            return super().bind(problem)
        spec = self.spec_of(problem)
        reducers, shape = self._shape(problem, spec)
        params = fusion_params(problem, tensors, reducers)
        launch_at = prepare(comm, spec, shape, params, pointers=len(_POINTERS))

        def run(comm: Communicator, tensors: FusionTensors) -> None:
            addresses = [0 if tensor is None else tensor.data_ptr() for tensor in kernel_tensors(tensors)]
            *packets, _ = addresses
            if functools.reduce(operator.or_, packets) % PACKET_BYTES:
                self.run(problem, comm, tensors)
            else:
                launch_at(*addresses)

        return run

    @classmethod
    def _shape(cls, problem: FusionProblem, spec: KernelSpec) -> tuple[int, tuple[int, int]]:
        """Blocks that sum while others finish rows, and the launch."""
        threads = int(spec.config["kThreads"])
        finishers, reducers = cls.blocks(problem, threads)
        return reducers, (reducers + finishers, threads)

    @staticmethod
    def blocks(problem: FusionProblem, threads: int) -> tuple[int, int]:
        """How many blocks finish rows, and how many others sum meanwhile; if none, all do both."""
        return min(MAX_BLOCKS, problem.tokens), 0


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


def fusion_params(problem: FusionProblem, tensors: FusionTensors, reducers: int = 0) -> FusionParams:
    """What a rank launches a kernel with; `reducers` blocks sum while others finish rows."""
    pointers = dict(zip(_POINTERS, kernel_tensors(tensors), strict=True))
    return FusionParams(
        **pointers, tokens=problem.tokens, reducers=reducers, eps=tensors.rms_eps, gamma_bias=tensors.weight_bias
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


def is_reduced(problem: FusionProblem, tensors: FusionTensors) -> bool:
    """Whether there is something to reduce, all of one type."""
    of_type = (tensors.residual_in, tensors.rms_gamma)
    same = all(tensor is None or tensor.dtype == problem.dtype for tensor in of_type)
    return problem.size > 1 and problem.tokens > 0 and same


def in_packets(tensors: FusionTensors) -> FusionTensors:
    """The tensors, with copies of those that are not contiguous and aligned."""
    changed: dict[str, Any] = {}
    for field in fields(tensors):
        tensor = getattr(tensors, field.name)
        if isinstance(tensor, torch.Tensor) and not _lies_in_packets(tensor, field.name):
            changed[field.name] = tensor.clone(memory_format=torch.contiguous_format)
    return replace(tensors, **changed) if changed else tensors


def _lies_in_packets(tensor: torch.Tensor, name: str) -> bool:
    return tensor.is_contiguous() and (name in _SCALARS or tensor.data_ptr() % PACKET_BYTES == 0)


def fits_kernel(problem: FusionProblem, tensors: FusionTensors) -> bool:
    """Whether the kernels take the tensors as they are."""
    return is_reduced(problem, tensors) and in_packets(tensors) is tensors
