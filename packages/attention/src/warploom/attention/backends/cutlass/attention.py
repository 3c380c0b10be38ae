"""The CUTLASS backend of `BatchAttention`."""

from __future__ import annotations

from warploom.attention.backends.reference.attention import ReferenceAttention
from warploom.attention.plan import AttentionBackend, AttentionCall, AttentionPlan
from warploom.attention.problems.attention import AttentionProblem
from warploom.core.backends import Support


class CutlassAttention(AttentionBackend):
    """Kernels on the CuTe headers of CUTLASS for GPUs; on CPU tensors the reference computes the same."""

    name = "cutlass"

    def supports(self, problem: AttentionProblem) -> Support:
        return Support.of(
            (problem.device_type == "cpu",
             "its CuTe kernels come with the Hopper kernels: they need sm_90a and the nvidia-cutlass extra"),
        )  # fmt: skip

    def note(self, problem: AttentionProblem) -> str:
        return "on CPU tensors the reference computes what the CuTe kernels do on a GPU"

    def run(self, problem: AttentionProblem, plan: AttentionPlan, call: AttentionCall) -> None:  # type: ignore[override]
        ReferenceAttention().run(problem, plan, call)
