"""Grouped fp8 products with block scales in plain torch: a loop over the groups, whose offsets it reads on the host."""

from __future__ import annotations

import torch

from warploom.core.backends import Backend, Support
from warploom.gemm.backends.reference.grouped import groups_of
from warploom.gemm.backends.reference.groupwise import block_scaled_product
from warploom.gemm.offsets import gathered
from warploom.gemm.problems.grouped_groupwise import GroupedGroupwiseProblem
from warploom.gemm.scales import scale_of_rows

__all__ = ["ReferenceGroupedGroupwise"]


class ReferenceGroupedGroupwise(Backend):
    """`group_gemm_fp8_nt_groupwise`. Row blocks of the scale of `a` are counted over all groups."""

    name = "reference"

    def supports(self, problem: GroupedGroupwiseProblem) -> Support:
        return Support()

    def run(
        self,
        problem: GroupedGroupwiseProblem,
        out: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        a_scale: torch.Tensor,
        b_scale: torch.Tensor,
        m_indptr: torch.Tensor,
        row_indices: torch.Tensor | None = None,
    ) -> None:
        a, a_scale = gathered(a, row_indices), gathered(a_scale, row_indices)
        block_m, block_n, block_k = problem.granularity
        a_rows = scale_of_rows(a_scale, problem.rows, block_m)
        b_rows = scale_of_rows(b_scale, problem.n, block_n)
        for group, rows in groups_of(m_indptr):
            out[rows] = block_scaled_product(a[rows], b[group], a_rows[rows], b_rows[group], block_k).to(out.dtype)
