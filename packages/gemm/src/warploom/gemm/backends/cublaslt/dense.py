"""Products of 16-bit operands through torch's own matrix product, which calls cuBLASLt."""

from __future__ import annotations

import functools

import torch

from warploom.core.backends import Backend, Support
from warploom.gemm.problems.dense import DenseProblem

__all__ = ["CublasltBmm", "CublasltMm"]


@functools.cache
def _widens(operator: str) -> bool:
    """Whether this torch can write float32 from 16-bit operands in one call (2.8 and later)."""
    return "dtype_out" in getattr(torch.ops.aten, operator).overloads()


def _supports(problem: DenseProblem, operator: str) -> Support:
    return Support.of(
        (not problem.activation, f"cuBLASLt through torch applies no {problem.activation}"),
        (
            problem.out_dtype in (problem.dtype, torch.float32),
            f"cuBLASLt through torch writes {problem.dtype} or float32 from {problem.dtype}, not {problem.out_dtype}",
        ),
        (
            problem.out_dtype == problem.dtype or _widens(operator),
            f"torch {torch.__version__} has no {operator} with float32 output (2.8 and later do)",
        ),
    )


class CublasltMm(Backend):
    """`mm_bf16` through ``torch.mm`` and ``torch.addmm``."""

    name = "cublaslt"
    needs_gpu = True

    def supports(self, problem: DenseProblem) -> Support:
        return _supports(problem, "mm")

    def run(
        self,
        problem: DenseProblem,
        out: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> None:
        if problem.out_dtype != problem.dtype:
            torch.ops.aten.mm.dtype_out(a, b, problem.out_dtype, out=out)
            if bias is not None:
                out.add_(bias)
        elif bias is None:
            torch.mm(a, b, out=out)
        else:
            torch.addmm(bias.to(out.dtype), a, b, out=out)


class CublasltBmm(Backend):
    """`bmm_bf16` through ``torch.bmm``."""

    name = "cublaslt"
    needs_gpu = True

    def supports(self, problem: DenseProblem) -> Support:
        return _supports(problem, "bmm")

    def run(self, problem: DenseProblem, out: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
        if problem.out_dtype != problem.dtype:
            torch.ops.aten.bmm.dtype_out(a, b, problem.out_dtype, out=out)
        else:
            torch.bmm(a, b, out=out)
