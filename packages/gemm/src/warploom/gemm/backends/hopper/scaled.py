"""fp8 products with scales of whole tensors or rows on Hopper by the kernel of `gemm_hopper.cuh`."""

from __future__ import annotations

import torch

from warploom.core.backends import Support
from warploom.gemm.backends.hopper.gemm_kernel import ACTIVATIONS, Operands, Scaling
from warploom.gemm.backends.hopper.product import HopperProduct, Product, product_support
from warploom.gemm.backends.hopper.tiles import ProductShape
from warploom.gemm.problems.scaled import ScaledProblem

__all__ = ["HopperScaled"]


class HopperScaled(HopperProduct):
    """`mm_fp8` and `bmm_fp8`. Weights that are not stored ``[n, k]`` are copied first."""

    takes = ("out", "tokens", "weights", "token_scales", "weight_scales", "bias")

    def supports(self, problem: ScaledProblem) -> Support:
        dtypes = problem.a_dtype, problem.b_dtype, problem.out_dtype
        return product_support(problem.arch, dtypes, (problem.batch, problem.m, problem.n, problem.k))

    def shape_of(self, problem: ScaledProblem) -> ProductShape:
        return ProductShape(problem.batch, problem.m, problem.n, problem.k, itemsize=1)

    def product(
        self,
        problem: ScaledProblem,
        out: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        a_scale: torch.Tensor,
        b_scale: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> Product:
        if a.dim() == 2:
            out, a, b = out.unsqueeze(0), a.unsqueeze(0), b.unsqueeze(0)
        operands = Operands(
            out,
            a,
            b.mT,
            problem.batch,
            bias=bias,
            token_scales=a_scale.expand(problem.batch, problem.m, 1),
            weight_scales=b_scale.t().expand(problem.batch, problem.n, 1),
        )
        return Product(operands, problem.m, scaling=Scaling.AT_END, activation=ACTIVATIONS[problem.activation])
