"""Attention by a kernel whose products CuTe makes, the layouts and instructions of CUTLASS: `attention_cutlass.cuh`."""

from __future__ import annotations

import functools
from collections.abc import Hashable
from dataclasses import replace
from typing import Any

from warploom.attention.backends.cuda.attention_kernel import KernelShape
from warploom.attention.backends.cuda.persistent_attention import HALF_DTYPES
from warploom.attention.backends.cuda.variant_source import VariantSource
from warploom.attention.backends.hopper.attention import HopperAttention
from warploom.attention.backends.reference.attention import ReferenceAttention
from warploom.attention.plan import AttentionBackend, AttentionCall, AttentionPlan, PreparedCall
from warploom.attention.problems.attention import AttentionProblem
from warploom.attention.schedule import WorkSchedule
from warploom.core.backends import Support
from warploom.core.jit import HeaderLibrary, KernelSpec
from warploom.core.workspace import WorkspaceLayout

__all__ = ["LIBRARIES", "CutlassAttention", "cutlass_spec"]

_INSTALL = "pip install 'warploom-attention[cutlass]'"
LIBRARIES = (
    HeaderLibrary(
        name="CUTLASS 4",
        folders=("cutlass_library/source/include",),
        version_header="cutlass/version.h",
        releases="CUTLASS_MAJOR 4",
        install=_INSTALL,
        nvrtc_options=("-default-device",),  # it has functions that it does not mark for the device
    ),
    HeaderLibrary(
        name="CCCL 3.0 or 3.1",
        folders=("nvidia/cu13/include/cccl", "nvidia/cu13/include"),  # CUTLASS includes <cuda/…> and <cccl/cuda/…>
        version_header="cuda/std/__cccl/version.h",
        releases=r"CCCL_VERSION 300[01]\d{3}",  # CUTLASS 4.2 does not compile with later ones
        install=_INSTALL,
    ),
)


@functools.lru_cache(256)
def cutlass_spec(hopper: KernelSpec) -> KernelSpec:
    """The kernel for the same values as one of `attention_hopper.cuh`."""
    return replace(
        hopper,
        header="warploom/attention/attention_cutlass.cuh",
        kernel="warploom::attention::attention_cutlass_kernel",
        libraries=LIBRARIES,
    )


class CuteAttention(HopperAttention):
    """What serves tensors on a GPU."""

    name = "cutlass"
    query_dtypes = HALF_DTYPES
    head_dims = ((64, 64), (128, 128))

    def supports(self, problem: AttentionProblem) -> Support:
        missing = [library.why_missing() for library in LIBRARIES]
        # Decodes too: whoever asks for this backend by name knows that tiles of 128 rows stay almost empty.
        return super().supports(replace(problem, phase="mixed")) & Support.of(*((not why, why) for why in missing))

    def kernel_spec(
        self, problem: AttentionProblem, has_wide: bool, shape: KernelShape, source: VariantSource
    ) -> KernelSpec:
        return cutlass_spec(super().kernel_spec(problem, has_wide, shape, source))


class CutlassAttention(AttentionBackend):
    """A kernel on the CuTe headers of CUTLASS for GPUs; on CPU tensors the reference computes the same."""

    name = "cutlass"

    def __init__(self) -> None:
        self._servers: dict[str, AttentionBackend] = {"cuda": CuteAttention(), "cpu": ReferenceAttention()}

    def _server(self, problem: AttentionProblem) -> AttentionBackend:
        return self._servers[problem.device_type]

    def supports(self, problem: AttentionProblem) -> Support:
        return self._server(problem).check(problem)

    def note(self, problem: AttentionProblem) -> str:
        if problem.device_type == "cpu":
            return "on CPU tensors the reference computes what the CuTe kernel does on a GPU"
        return self._server(problem).note(problem)

    def workspace_layout(self, problem: AttentionProblem) -> WorkspaceLayout:
        return self._server(problem).workspace_layout(problem)

    def state_layout(self, problem: AttentionProblem, batch: int) -> WorkspaceLayout:
        return self._server(problem).state_layout(problem, batch)

    def schedule(self, plan: AttentionPlan) -> Any:
        return self._server(plan.problem).schedule(plan)

    def kind(self, plan: AttentionPlan) -> Hashable:
        return self._server(plan.problem).kind(plan)

    def prepare(self, plan: AttentionPlan, call: AttentionCall) -> PreparedCall | None:
        return self._server(plan.problem).prepare(plan, call)

    def divided_work(self, plan: AttentionPlan) -> WorkSchedule | None:
        return self._server(plan.problem).divided_work(plan)

    def run(self, problem: AttentionProblem, plan: AttentionPlan, call: AttentionCall) -> None:  # type: ignore[override]
        self._server(problem).run(problem, plan, call)
