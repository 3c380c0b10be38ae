"""fp8 products with block scales in plain torch.

Each block of K is multiplied exactly in float32 and its partial sum scaled by ``a_scale * b_scale``, as the kernels do:
dequantising the operands first would overflow for large scales whose product is moderate.
"""

from __future__ import annotations

import torch

from warploom.core.backends import Backend, Support
from warploom.gemm.backends.reference.finish import finish
from warploom.gemm.problems.groupwise import GroupwiseProblem
from warploom.gemm.scales import scale_of_rows

__all__ = ["ReferenceGroupwise", "block_scaled_product"]


def block_scaled_product(
    a: torch.Tensor, b: torch.Tensor, a_scale: torch.Tensor, b_scale: torch.Tensor, block_k: int
) -> torch.Tensor:
    """float32 product of ``a[..., m, k]`` and ``b[..., n, k]`` with scales for each row and K block of both."""
    m, k = a.shape[-2:]
    total = torch.zeros(*a.shape[:-2], m, b.shape[-2], dtype=torch.float32, device=a.device)
    for block, start in enumerate(range(0, k, block_k)):
        columns = slice(start, min(start + block_k, k))
        partial = a[..., columns].float() @ b[..., columns].float().mT
        total += partial * (a_scale[..., block].unsqueeze(-1) * b_scale[..., block].unsqueeze(-2))
    return total


class ReferenceGroupwise(Backend):
    name = "reference"

    def supports(self, problem: GroupwiseProblem) -> Support:
        return Support()

    def run(
        self,
        problem: GroupwiseProblem,
        out: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        a_scale: torch.Tensor,
        b_scale: torch.Tensor,
    ) -> None:
        block_m, block_n, block_k = problem.granularity
        a_rows = scale_of_rows(a_scale, problem.m, block_m)
        b_rows = scale_of_rows(b_scale, problem.n, block_n)
        finish(out, block_scaled_product(a, b, a_rows, b_rows, block_k))
