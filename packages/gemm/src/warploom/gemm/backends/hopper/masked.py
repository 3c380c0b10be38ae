"""Batched fp8 products of which the first rows count, on Hopper by the kernel of `gemm_hopper.cuh`."""

from __future__ import annotations

import torch

from warploom.core.backends import Support
from warploom.gemm.backends.hopper.gemm_kernel import Grouping, Operands, Scaling
from warploom.gemm.backends.hopper.grouped import group_support
from warploom.gemm.backends.hopper.groupwise import block_shape, block_support
from warploom.gemm.backends.hopper.product import HopperProduct, Product, product_support
from warploom.gemm.backends.hopper.tiles import ProductShape
from warploom.gemm.problems.masked import MaskedGroupwiseProblem

__all__ = ["HopperMaskedGroupwise"]


class HopperMaskedGroupwise(HopperProduct):
    """`batch_gemm_fp8_nt_groupwise_masked`."""

    takes = ("out", "tokens", "weights", "token_scales", "weight_scales", "sizes")

    def supports(self, problem: MaskedGroupwiseProblem) -> Support:
        dtypes = problem.a_dtype, problem.b_dtype, problem.out_dtype
        shape = problem.groups, problem.max_m, problem.n, problem.k
        return (
            product_support(problem.arch, dtypes, shape)
            & group_support(problem.groups)
            & block_support(problem.granularity)
        )

    def shape_of(self, problem: MaskedGroupwiseProblem) -> ProductShape:
        return block_shape(problem.groups, _expected_tokens(problem), problem)

    def product(
        self,
        problem: MaskedGroupwiseProblem,
        out: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        a_scale: torch.Tensor,
        b_scale: torch.Tensor,
        masked_m: torch.Tensor,
    ) -> Product:
        operands = Operands(
            out,
            a,
            b,
            problem.groups,
            token_scales=a_scale,
            weight_scales=b_scale,
            granularity=problem.granularity,
            sizes=masked_m,
        )
        return Product(operands, _expected_tokens(problem), Grouping.COUNTS, Scaling.OF_BLOCKS)


def _expected_tokens(problem: MaskedGroupwiseProblem) -> int:
    return max(1, min(problem.expected_m, problem.max_m))
