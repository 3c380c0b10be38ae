"""Segment products (LoRA) on Hopper by the kernel of `gemm_hopper.cuh`: groups that choose their weights."""

from __future__ import annotations

import torch

from warploom.core.backends import Support
from warploom.gemm.backends.hopper.gemm_kernel import Grouping, Operands
from warploom.gemm.backends.hopper.grouped import group_support, tokens_of_groups
from warploom.gemm.backends.hopper.product import HopperRowsProduct, Product, product_support
from warploom.gemm.backends.hopper.tiles import ProductShape
from warploom.gemm.problems.segment import SegmentProblem

__all__ = ["HopperSegment"]


class HopperSegment(HopperRowsProduct):
    """Shrinking and expanding products alike, with weights in either storage order."""

    takes = ("out", "tokens", "weights", "sizes", "weight_indices")

    def supports(self, problem: SegmentProblem) -> Support:
        dtypes = problem.dtype, problem.dtype, problem.out_dtype
        shape = problem.batch, problem.rows, problem.d_out, problem.d_in
        return product_support(problem.arch, dtypes, shape) & group_support(problem.batch)

    def shape_of(self, problem: SegmentProblem) -> ProductShape:
        tokens = tokens_of_groups(problem.rows, problem.batch)
        return ProductShape(problem.batch, tokens, problem.d_out, problem.d_in, problem.dtype.itemsize)

    def product(
        self,
        problem: SegmentProblem,
        out: torch.Tensor,
        x: torch.Tensor,
        weights: torch.Tensor,
        seg_indptr: torch.Tensor,
        weight_indices: torch.Tensor | None,
    ) -> Product:
        operands = Operands(
            out.unsqueeze(0),
            x.unsqueeze(0),
            weights,
            problem.batch,
            sizes=seg_indptr,
            weight_indices=weight_indices,
        )
        return Product(operands, tokens_of_groups(problem.rows, problem.batch), Grouping.OFFSETS)
