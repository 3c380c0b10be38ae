"""Grouped products on Hopper by the kernel of `gemm_hopper.cuh`: blocks count the groups' tiles on their own."""

from __future__ import annotations

import torch

from warploom.core.backends import Support
from warploom.gemm.backends.hopper.gemm_kernel import Grouping, Operands, Scaling
from warploom.gemm.backends.hopper.product import MOST_GROUPS, HopperRowsProduct, Product, product_support
from warploom.gemm.backends.hopper.tiles import ProductShape
from warploom.gemm.problems.grouped import GroupedProblem, GroupedScaledProblem
from warploom.gemm.scales import ceil_div

__all__ = ["HopperGrouped", "HopperGroupedScaled", "group_support", "tokens_of_groups"]


def group_support(groups: int) -> Support:
    return Support.of((groups <= MOST_GROUPS, f"takes at most {MOST_GROUPS} groups, got {groups}"))


def tokens_of_groups(rows: int, groups: int) -> int:
    """A group's rows if all have as many; how many each has only the device knows."""
    return ceil_div(rows, max(groups, 1))


class HopperGrouped(HopperRowsProduct):
    """`grouped_mm_bf16`."""

    takes = ("out", "tokens", "weights", "sizes")

    def supports(self, problem: GroupedProblem) -> Support:
        dtypes = problem.dtype, problem.dtype, problem.out_dtype
        shape = problem.groups, problem.rows, problem.n, problem.k
        return product_support(problem.arch, dtypes, shape) & group_support(problem.groups)

    def shape_of(self, problem: GroupedProblem) -> ProductShape:
        tokens = tokens_of_groups(problem.rows, problem.groups)
        return ProductShape(problem.groups, tokens, problem.n, problem.k, problem.dtype.itemsize)

    def product(
        self,
        problem: GroupedProblem,
        out: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        m_indptr: torch.Tensor,
    ) -> Product:
        operands = Operands(out.unsqueeze(0), a.unsqueeze(0), b, problem.groups, sizes=m_indptr)
        return Product(operands, tokens_of_groups(problem.rows, problem.groups), Grouping.OFFSETS)


class HopperGroupedScaled(HopperRowsProduct):
    """`grouped_mm_fp8`."""

    takes = ("out", "tokens", "weights", "token_scales", "weight_scales", "sizes")

    def supports(self, problem: GroupedScaledProblem) -> Support:
        dtypes = problem.a_dtype, problem.b_dtype, problem.out_dtype
        shape = problem.groups, problem.rows, problem.n, problem.k
        return product_support(problem.arch, dtypes, shape) & group_support(problem.groups)

    def shape_of(self, problem: GroupedScaledProblem) -> ProductShape:
        tokens = tokens_of_groups(problem.rows, problem.groups)
        return ProductShape(problem.groups, tokens, problem.n, problem.k, itemsize=1)

    def product(
        self,
        problem: GroupedScaledProblem,
        out: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        a_scale: torch.Tensor,
        b_scale: torch.Tensor,
        m_indptr: torch.Tensor,
    ) -> Product:
        operands = Operands(
            out.unsqueeze(0),
            a.unsqueeze(0),
            b,
            problem.groups,
            token_scales=a_scale[None, :, None],
            weight_scales=b_scale.unsqueeze(2),
            sizes=m_indptr,
        )
        return Product(operands, tokens_of_groups(problem.rows, problem.groups), Grouping.OFFSETS, Scaling.AT_END)
