"""Grouped fp8 products with block scales on Hopper by the kernel of `gemm_hopper.cuh`."""

from __future__ import annotations

import torch

from warploom.core.backends import Support
from warploom.gemm.backends.hopper.gemm_kernel import Grouping, Operands, Scaling
from warploom.gemm.backends.hopper.grouped import gathered_operands, gathers_in_load, group_support, tokens_of_groups
from warploom.gemm.backends.hopper.groupwise import block_shape, block_support
from warploom.gemm.backends.hopper.product import HopperProduct, Product, product_support
from warploom.gemm.backends.hopper.tiles import ProductShape
from warploom.gemm.problems.grouped_groupwise import GroupedGroupwiseProblem

__all__ = ["HopperGroupedGroupwise"]


class HopperGroupedGroupwise(HopperProduct):
    """`group_gemm_fp8_nt_groupwise`."""

    takes = ("out", "tokens", "weights", "token_scales", "weight_scales", "sizes", "row_indices")

    def supports(self, problem: GroupedGroupwiseProblem) -> Support:
        dtypes = problem.a_dtype, problem.b_dtype, problem.out_dtype
        shape = problem.groups, problem.rows, problem.n, problem.k
        return (
            product_support(problem.arch, dtypes, shape)
            & group_support(problem.groups)
            & block_support(problem.granularity)
        )

    def shape_of(self, problem: GroupedGroupwiseProblem) -> ProductShape:
        tokens = tokens_of_groups(problem.rows, problem.groups)
        return block_shape(problem.groups, tokens, problem)._replace(gathers=gathers_in_load(problem))

    def product(
        self,
        problem: GroupedGroupwiseProblem,
        out: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        a_scale: torch.Tensor,
        b_scale: torch.Tensor,
        m_indptr: torch.Tensor,
        row_indices: torch.Tensor | None = None,
    ) -> Product:
        operands = Operands(
            out.unsqueeze(0),
            a.unsqueeze(0),
            b,
            problem.groups,
            token_scales=a_scale.unsqueeze(0),
            weight_scales=b_scale,
            granularity=problem.granularity,
            sizes=m_indptr,
            row_indices=row_indices,
        )
        operands = gathered_operands(problem, operands)
        return Product(operands, tokens_of_groups(problem.rows, problem.groups), Grouping.OFFSETS, Scaling.OF_BLOCKS)
