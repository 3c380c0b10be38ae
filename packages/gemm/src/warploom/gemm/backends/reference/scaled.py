"""fp8 products with scales of whole tensors or rows in plain torch; the scales multiply the float32 sum."""

from __future__ import annotations

import torch

from warploom.core.backends import Backend, Support
from warploom.gemm.backends.reference.finish import finish
from warploom.gemm.problems.scaled import ScaledProblem

__all__ = ["ReferenceScaled"]


class ReferenceScaled(Backend):
    """`mm_fp8` and `bmm_fp8`: the same code, since ``@`` takes leading batch dimensions."""

    name = "reference"

    def supports(self, problem: ScaledProblem) -> Support:
        return Support()

    def run(
        self,
        problem: ScaledProblem,
        out: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        a_scale: torch.Tensor,
        b_scale: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> None:
        """`a_scale` is ``[m, 1]`` or ``[1, 1]``, `b_scale` ``[1, n]`` or ``[1, 1]``."""
        product = (a.float() @ b.float()) * (a_scale * b_scale)
        finish(out, product if bias is None else product + bias.float(), problem.activation)
