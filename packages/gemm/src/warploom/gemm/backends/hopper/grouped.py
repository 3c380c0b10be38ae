"""Grouped products on Hopper by the kernel of `gemm_hopper.cuh`: blocks count the groups' tiles on their own."""

from __future__ import annotations

import torch

from warploom.core.backends import Support
from warploom.gemm.backends.hopper.gemm_kernel import Grouping, Operands, Scaling
from warploom.gemm.backends.hopper.product import MOST_GROUPS, HopperRowsProduct, Product, product_support
from warploom.gemm.backends.hopper.tiles import ProductShape
from warploom.gemm.offsets import gathered
from warploom.gemm.problems.grouped import GroupedProblem, GroupedScaledProblem
from warploom.gemm.scales import ceil_div

__all__ = ["HopperGrouped", "HopperGroupedScaled", "gathered_operands", "gathers_in_load", "group_support"]
__all__ += ["tokens_of_groups"]

# The kernel gathers the tokens of small groups for less than a pass costs: 16 or 64 tokens of 7168 columns each saved 1 to 3 %
# of a product on an H200, where 256 took two to three times as long.
_MOST_GATHERED = 64


def group_support(groups: int) -> Support:
    return Support.of((groups <= MOST_GROUPS, f"takes at most {MOST_GROUPS} groups, got {groups}"))


def tokens_of_groups(rows: int, groups: int) -> int:
    """A group's rows if all have as many; how many each has only the device knows."""
    return ceil_div(rows, max(groups, 1))


def gathers_in_load(problem: GroupedProblem | GroupedScaledProblem) -> bool:
    """Whether the kernel gathers the rows that indices name."""
    return problem.gathers and tokens_of_groups(problem.rows, problem.groups) <= _MOST_GATHERED


def gathered_operands(problem: GroupedProblem | GroupedScaledProblem, operands: Operands) -> Operands:
    """Operands as the kernel takes them, with tokens that a pass has gathered if it is not to gather them itself."""
    indices, scales = operands.row_indices, operands.token_scales
    if indices is None or gathers_in_load(problem):
        return operands
    return operands._replace(
        tokens=gathered(operands.tokens[0], indices).unsqueeze(0),
        token_scales=None if scales is None else gathered(scales[0], indices).unsqueeze(0),
        row_indices=None,
    )


class HopperGrouped(HopperRowsProduct):
    """`grouped_mm_bf16`."""

    takes = ("out", "tokens", "weights", "sizes", "row_indices")

    def supports(self, problem: GroupedProblem) -> Support:
        dtypes = problem.dtype, problem.dtype, problem.out_dtype
        shape = problem.groups, problem.rows, problem.n, problem.k
        return product_support(problem.arch, dtypes, shape) & group_support(problem.groups)

    def shape_of(self, problem: GroupedProblem) -> ProductShape:
        tokens = tokens_of_groups(problem.rows, problem.groups)
        size, gathers = problem.dtype.itemsize, gathers_in_load(problem)
        return ProductShape(problem.groups, tokens, problem.n, problem.k, size, gathers=gathers)

    def product(
        self,
        problem: GroupedProblem,
        out: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        m_indptr: torch.Tensor,
        row_indices: torch.Tensor | None = None,
    ) -> Product:
        operands = Operands(
            out.unsqueeze(0), a.unsqueeze(0), b, problem.groups, sizes=m_indptr, row_indices=row_indices
        )
        return Product(
            gathered_operands(problem, operands), tokens_of_groups(problem.rows, problem.groups), Grouping.OFFSETS
        )


class HopperGroupedScaled(HopperRowsProduct):
    """`grouped_mm_fp8`."""

    takes = ("out", "tokens", "weights", "token_scales", "weight_scales", "sizes", "row_indices")

    def supports(self, problem: GroupedScaledProblem) -> Support:
        dtypes = problem.a_dtype, problem.b_dtype, problem.out_dtype
        shape = problem.groups, problem.rows, problem.n, problem.k
        return product_support(problem.arch, dtypes, shape) & group_support(problem.groups)

    def shape_of(self, problem: GroupedScaledProblem) -> ProductShape:
        tokens = tokens_of_groups(problem.rows, problem.groups)
        return ProductShape(problem.groups, tokens, problem.n, problem.k, 1, gathers=gathers_in_load(problem))

    def product(
        self,
        problem: GroupedScaledProblem,
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
            token_scales=a_scale[None, :, None],
            weight_scales=b_scale.unsqueeze(2),
            sizes=m_indptr,
            row_indices=row_indices,
        )
        return Product(
            gathered_operands(problem, operands),
            tokens_of_groups(problem.rows, problem.groups),
            Grouping.OFFSETS,
            Scaling.AT_END,
        )
