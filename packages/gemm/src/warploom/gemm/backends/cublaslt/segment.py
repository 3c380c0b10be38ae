"""Segment products through ``torch._grouped_mm``, one group for each segment."""

from __future__ import annotations

import torch

from warploom.core.backends import Backend, Support
from warploom.gemm.backends.cublaslt.grouped import grouped_mm, grouped_mm_support, write_result
from warploom.gemm.problems.segment import SegmentProblem

__all__ = ["CublasltSegment"]


class CublasltSegment(Backend):
    """Weights that segments choose are gathered first, a copy of ``batch * d_in * d_out`` elements."""

    name = "cublaslt"
    needs_gpu = True

    def supports(self, problem: SegmentProblem) -> Support:
        return grouped_mm_support(
            problem.arch, problem.d_out, problem.d_in, problem.batch, problem.dtype, problem.out_dtype
        )

    def run(
        self,
        problem: SegmentProblem,
        out: torch.Tensor | None,
        x: torch.Tensor,
        weights: torch.Tensor,
        seg_indptr: torch.Tensor,
        weight_indices: torch.Tensor | None,
    ) -> torch.Tensor:
        if weight_indices is None:
            chosen = weights[: problem.batch]
        elif problem.column_major:
            chosen = weights.index_select(0, weight_indices)
        else:
            chosen = weights.mT.index_select(0, weight_indices).mT
        return write_result(out, grouped_mm(x, chosen, seg_indptr))
