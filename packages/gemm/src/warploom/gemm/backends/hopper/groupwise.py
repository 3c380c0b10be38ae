"""fp8 products with block scales on Hopper by the kernel of `gemm_hopper.cuh`."""

from __future__ import annotations

import torch

from warploom.core.backends import Support
from warploom.gemm.backends.hopper.gemm_kernel import Operands, Scaling
from warploom.gemm.backends.hopper.product import HopperProduct, Product, product_support, shares_scales
from warploom.gemm.backends.hopper.tiles import SPAN_BYTES, ProductShape
from warploom.gemm.problems.grouped_groupwise import GroupedGroupwiseProblem
from warploom.gemm.problems.groupwise import GroupwiseProblem
from warploom.gemm.problems.masked import MaskedGroupwiseProblem

__all__ = ["HopperGroupwise", "block_shape", "block_support"]


def block_support(granularity: tuple[int, int, int]) -> Support:
    """Scales hold for whole spans of k; blocks of rows may have any size."""
    depth = granularity[2]
    return Support.of((depth % SPAN_BYTES == 0, f"blocks of k must be multiples of {SPAN_BYTES}, not {depth}"))


def block_shape(
    groups: int, tokens: int, problem: GroupwiseProblem | GroupedGroupwiseProblem | MaskedGroupwiseProblem
) -> ProductShape:
    """What tiles of a block-scaled product are chosen by."""
    shares = shares_scales(problem.granularity)
    return ProductShape(groups, tokens, problem.n, problem.k, itemsize=1, has_blocks=True, shares_scales=shares)


class HopperGroupwise(HopperProduct):
    """`gemm_fp8_nt_groupwise`."""

    takes = ("out", "tokens", "weights", "token_scales", "weight_scales")

    def supports(self, problem: GroupwiseProblem) -> Support:
        dtypes = problem.a_dtype, problem.b_dtype, problem.out_dtype
        return product_support(problem.arch, dtypes, (1, problem.m, problem.n, problem.k)) & block_support(
            problem.granularity
        )

    def shape_of(self, problem: GroupwiseProblem) -> ProductShape:
        return block_shape(1, problem.m, problem)

    def product(
        self,
        problem: GroupwiseProblem,
        out: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        a_scale: torch.Tensor,
        b_scale: torch.Tensor,
    ) -> Product:
        operands = Operands(
            out.unsqueeze(0),
            a.unsqueeze(0),
            b.unsqueeze(0),
            1,
            token_scales=a_scale.unsqueeze(0),
            weight_scales=b_scale.unsqueeze(0),
            granularity=problem.granularity,
        )
        return Product(operands, problem.m, scaling=Scaling.OF_BLOCKS)
