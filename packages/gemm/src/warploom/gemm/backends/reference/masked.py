"""Masked products in plain torch: all rows are computed and the masked ones kept, so nothing is read on the host."""

from __future__ import annotations

import torch

from warploom.core.backends import Backend, Support
from warploom.gemm.backends.reference.groupwise import block_scaled_product
from warploom.gemm.problems.masked import MaskedGroupwiseProblem
from warploom.gemm.scales import scale_of_rows

__all__ = ["ReferenceMaskedGroupwise"]


class ReferenceMaskedGroupwise(Backend):
    name = "reference"

    def supports(self, problem: MaskedGroupwiseProblem) -> Support:
        return Support()

    def run(
        self,
        problem: MaskedGroupwiseProblem,
        out: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        a_scale: torch.Tensor,
        b_scale: torch.Tensor,
        masked_m: torch.Tensor,
    ) -> None:
        block_m, block_n, block_k = problem.granularity
        a_rows = scale_of_rows(a_scale, problem.max_m, block_m)
        b_rows = scale_of_rows(b_scale, problem.n, block_n)
        product = block_scaled_product(a, b, a_rows, b_rows, block_k).to(out.dtype)
        valid = torch.arange(problem.max_m, device=out.device) < masked_m.unsqueeze(1)  # [groups, max_m]
        out.copy_(torch.where(valid.unsqueeze(2), product, out))
