"""fp8 products with scales of whole tensors or rows through ``torch._scaled_mm``."""

from __future__ import annotations

import torch

from warploom.core.backends import Backend, Support
from warploom.gemm.backends.cublaslt.scaled_mm import k_major, operand_support, row_scale_support, scaled_mm
from warploom.gemm.problems.scaled import ScaledProblem

__all__ = ["CublasltScaledBmm", "CublasltScaledMm"]


class CublasltScaledMm(Backend):
    """`mm_fp8`. Operands that are not K-major (`b` not the transpose of an ``[n, k]`` weight) are copied first."""

    name = "cublaslt"
    needs_gpu = True
    min_arch = 89

    def supports(self, problem: ScaledProblem) -> Support:
        dtypes = problem.a_dtype, problem.b_dtype, problem.out_dtype
        support = operand_support(problem.n, problem.k, *dtypes, problem.activation)
        if problem.by_row:
            support &= row_scale_support(problem.arch, problem.a_dtype, problem.b_dtype, problem.out_dtype)
        return support

    def run(
        self,
        problem: ScaledProblem,
        out: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        a_scale: torch.Tensor,
        b_scale: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> None:
        if problem.by_row:  # torch takes rows on both sides or on neither
            a_scale = a_scale.expand(problem.m, 1).contiguous()
            b_scale = b_scale.expand(1, problem.n).contiguous()
        scaled_mm(out, k_major(a), k_major(b.t()), a_scale, b_scale, bias)


class CublasltScaledBmm(Backend):
    """`bmm_fp8`: torch has no batched product with scales, so one `mm_fp8` for each matrix of the batch."""

    name = "cublaslt"
    needs_gpu = True
    min_arch = 89

    def supports(self, problem: ScaledProblem) -> Support:
        return operand_support(problem.n, problem.k, problem.a_dtype, problem.b_dtype, problem.out_dtype)

    def run(
        self,
        problem: ScaledProblem,
        out: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        a_scale: torch.Tensor,
        b_scale: torch.Tensor,
    ) -> None:
        for i in range(problem.batch):
            scaled_mm(out[i], k_major(a[i]), k_major(b[i].t()), a_scale, b_scale)
