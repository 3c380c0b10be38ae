"""Products of 16-bit operands in plain torch: float32 operands, float32 sums, one rounding at the end."""

from __future__ import annotations

import torch

from warploom.core.backends import Backend, Support
from warploom.gemm.backends.reference.finish import finish
from warploom.gemm.problems.dense import DenseProblem

__all__ = ["ReferenceDense"]


class ReferenceDense(Backend):
    """`mm_bf16` and `bmm_bf16`: the same code, since ``@`` takes leading batch dimensions."""

    name = "reference"

    def supports(self, problem: DenseProblem) -> Support:
        return Support()

    def run(
        self,
        problem: DenseProblem,
        out: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> None:
        product = a.float() @ b.float()
        finish(out, product if bias is None else product + bias.float(), problem.activation)
