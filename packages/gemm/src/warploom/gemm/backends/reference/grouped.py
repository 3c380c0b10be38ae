"""Grouped products in plain torch: a loop over the groups, whose offsets it reads on the host."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch

from warploom.core.backends import Backend, Support
from warploom.gemm.formats import Output
from warploom.gemm.offsets import gathered
from warploom.gemm.problems.grouped import GroupedProblem, GroupedScaledProblem

__all__ = ["ReferenceGrouped", "ReferenceGroupedScaled", "groups_of"]


def groups_of(m_indptr: torch.Tensor) -> Iterator[tuple[int, slice]]:
    """Index and rows of every group that has any."""
    offsets = m_indptr.tolist()
    for group, (start, end) in enumerate(itertools.pairwise(offsets)):
        if end > start:
            yield group, slice(start, end)


class ReferenceGrouped(Backend):
    """`grouped_mm_bf16`."""

    name = "reference"

    def supports(self, problem: GroupedProblem) -> Support:
        return Support()

    def run(
        self,
        problem: GroupedProblem,
        out: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        m_indptr: torch.Tensor,
        row_indices: torch.Tensor | None = None,
    ) -> torch.Tensor:
        out = Output((problem.rows, problem.n), problem.out_dtype).tensor(out, like=a)
        a = gathered(a, row_indices)
        for group, rows in groups_of(m_indptr):
            out[rows] = (a[rows].float() @ b[group].float().T).to(out.dtype)
        return out


class ReferenceGroupedScaled(Backend):
    """`grouped_mm_fp8`."""

    name = "reference"

    def supports(self, problem: GroupedScaledProblem) -> Support:
        return Support()

    def run(
        self,
        problem: GroupedScaledProblem,
        out: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        a_scale: torch.Tensor,
        b_scale: torch.Tensor,
        m_indptr: torch.Tensor,
        row_indices: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`a_scale` is ``[tokens]``, `b_scale` ``[groups, n]``; either may be expanded from fewer numbers."""
        out = Output((problem.rows, problem.n), problem.out_dtype).tensor(out, like=a)
        a, a_scale = gathered(a, row_indices), gathered(a_scale, row_indices)
        for group, rows in groups_of(m_indptr):
            scale = a_scale[rows].unsqueeze(1) * b_scale[group].unsqueeze(0)
            out[rows] = ((a[rows].float() @ b[group].float().T) * scale).to(out.dtype)
        return out
