"""SiLU-and-multiply and RMSNorm in float32, quantised by the rule of ``quantize.py`` without a rounding in between."""

from __future__ import annotations

import torch

from warploom.core.backends import Backend, Support
from warploom.gemm.backends.reference.quantize import cast, inverse_of, quantize_blocks
from warploom.gemm.problems.quantize_fused import RmsNormQuantProblem, SiluAndMulQuantProblem

__all__ = ["ReferenceRmsNormQuant", "ReferenceSiluAndMulQuant"]

_SMALLEST_GATE = -87.0  # exp(88.8) is infinite in float32


def _silu(x: torch.Tensor) -> torch.Tensor:
    """``x / (1 + exp(-x))``, and its limit 0 for very negative numbers, at minus infinity too: torch's is NaN there."""
    return torch.where(x < _SMALLEST_GATE, -0.0, torch.nn.functional.silu(x))


def _quantize(
    y: torch.Tensor, scale: torch.Tensor, group_size: int | None, eps: float, dtype: torch.dtype, power_of_two: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and scales of ``y[batch, rows, columns]``: with the given scale, or with one of each group."""
    if group_size is None:
        return cast(y, inverse_of(scale), dtype), scale
    columns = y.shape[-1] if group_size == -1 else group_size
    return quantize_blocks(y, (1, columns), eps, dtype, power_of_two)


def _write_rows(to: torch.Tensor, values: torch.Tensor, counts: torch.Tensor | None) -> None:
    """Write all rows of ``to[batch, rows, ...]``, or the first ``counts[batch]`` of them. Reads nothing on the host."""
    if counts is not None:
        kept = torch.arange(to.shape[1], device=to.device) >= counts[:, None]
        bits = torch.uint8 if to.dtype.itemsize == 1 else to.dtype  # torch selects no fp8
        values = torch.where(kept[:, :, None], to.view(bits), values.contiguous().view(bits)).view(to.dtype)
    to.copy_(values)


class ReferenceSiluAndMulQuant(Backend):
    name = "reference"

    def supports(self, problem: SiluAndMulQuantProblem) -> Support:
        return Support()

    def run(
        self,
        problem: SiluAndMulQuantProblem,
        q: torch.Tensor,
        scale: torch.Tensor,
        x: torch.Tensor,
        masked_m: torch.Tensor | None,
        eps: float,
    ) -> None:
        if q.numel() == 0:
            return
        gate, factor = x.float().chunk(2, dim=-1)
        y = _silu(gate) * factor
        values, scales = _quantize(y, scale, problem.group_size, eps, q.dtype, problem.power_of_two)
        _write_rows(q, values, masked_m)
        if problem.group_size is not None:
            _write_rows(scale, scales, masked_m)


class ReferenceRmsNormQuant(Backend):
    name = "reference"

    def supports(self, problem: RmsNormQuantProblem) -> Support:
        return Support()

    def run(
        self,
        problem: RmsNormQuantProblem,
        q: torch.Tensor,
        scale: torch.Tensor,
        residual: torch.Tensor | None,
        x: torch.Tensor,
        weight: torch.Tensor,
        norm_eps: float,
        eps: float,
    ) -> None:
        if q.numel() == 0:
            return
        if residual is not None:
            residual.copy_(x.float() + residual.float())
            x = residual
        wide = x.float()
        norm = torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm_eps)
        y = wide * norm * weight.float()
        values, scales = _quantize(y, scale, problem.group_size, eps, q.dtype, problem.power_of_two)
        q.copy_(values)
        if problem.group_size is not None:
            scale.copy_(scales)
