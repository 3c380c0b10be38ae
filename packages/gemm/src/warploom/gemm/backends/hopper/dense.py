"""Products of 16-bit operands on Hopper by the kernel of `gemm_hopper.cuh`."""

from __future__ import annotations

import torch

from warploom.core.backends import Support
from warploom.gemm.backends.hopper.gemm_kernel import ACTIVATIONS, Operands
from warploom.gemm.backends.hopper.product import HopperProduct, Product, product_support
from warploom.gemm.backends.hopper.tiles import ProductShape
from warploom.gemm.problems.dense import DenseProblem

__all__ = ["HopperDense"]


class HopperDense(HopperProduct):
    """`mm_bf16` and `bmm_bf16`."""

    takes = ("out", "tokens", "weights", "bias")

    def supports(self, problem: DenseProblem) -> Support:
        dtypes = problem.dtype, problem.dtype, problem.out_dtype
        return product_support(problem.arch, dtypes, (problem.batch, problem.m, problem.n, problem.k))

    def shape_of(self, problem: DenseProblem) -> ProductShape:
        return ProductShape(problem.batch, problem.m, problem.n, problem.k, problem.dtype.itemsize)

    def product(
        self,
        problem: DenseProblem,
        out: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> Product:
        if a.dim() == 2:
            out, a, b = out.unsqueeze(0), a.unsqueeze(0), b.unsqueeze(0)
        operands = Operands(out, a, b.mT, problem.batch, bias=bias)
        return Product(operands, problem.m, activation=ACTIVATIONS[problem.activation])
