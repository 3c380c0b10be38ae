"""Segment products in plain torch: a loop over the segments, whose offsets and weights it reads on the host."""

from __future__ import annotations

import torch

from warploom.core.backends import Backend, Support
from warploom.gemm.backends.reference.grouped import groups_of
from warploom.gemm.formats import Output
from warploom.gemm.problems.segment import SegmentProblem

__all__ = ["ReferenceSegment"]


class ReferenceSegment(Backend):
    name = "reference"

    def supports(self, problem: SegmentProblem) -> Support:
        return Support()

    def run(
        self,
        problem: SegmentProblem,
        out: torch.Tensor | None,
        x: torch.Tensor,
        weights: torch.Tensor,
        seg_indptr: torch.Tensor,
        weight_indices: torch.Tensor | None,
    ) -> torch.Tensor:
        """`weights` is ``[num_weights, d_out, d_in]`` in either storage order."""
        out = Output((problem.rows, problem.d_out), problem.out_dtype).tensor(out, like=x)
        chosen = range(problem.batch) if weight_indices is None else weight_indices.tolist()
        for segment, rows in groups_of(seg_indptr):
            out[rows] = (x[rows].float() @ weights[chosen[segment]].float().T).to(out.dtype)
        return out
