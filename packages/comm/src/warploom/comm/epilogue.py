"""What follows an all-reduce in a transformer block, in plain torch: residual, RMSNorm, fp8 quantisation.

Every step rounds its result to the dtype of the input, as the separate operators of a model do, so that fused and
unfused backends agree to the last bit where they add in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from warploom.comm.problems.fusion import FusionProblem

__all__ = ["FP8_MAX", "FusionTensors", "apply_epilogue"]

FP8_MAX = 448.0  # largest float8_e4m3fn
_SMALLEST_SCALE = 1e-12  # a row of zeros must not divide by zero


@dataclass(slots=True)  # frozen, it would take four times as long to make
class FusionTensors:
    """Tensors of one `allreduce_fusion`. ``[tokens, hidden]`` unless said; None where the pattern has no use for it.

    Attributes
    ----------
    input : torch.Tensor
        This rank's part of the sum.
    output, residual_out, norm_out, quant_out : torch.Tensor, optional
        The sum; the sum plus residual; its RMSNorm; that in float8_e4m3fn.
    scale_out : torch.Tensor, optional
        Computed scales: float32 ``[tokens, 1]`` or ``[tokens, hidden / group_size]``.
    residual_in, rms_gamma : torch.Tensor, optional
        The residual, and the norm's weight ``[hidden]``.
    scale_factor : torch.Tensor, optional
        The given scale of the "tensor" patterns, float32 ``[1]``.
    rms_eps, weight_bias : float
        Added to the mean square; added to the weight.
    """

    input: torch.Tensor
    output: torch.Tensor | None
    residual_out: torch.Tensor | None
    norm_out: torch.Tensor | None
    quant_out: torch.Tensor | None
    scale_out: torch.Tensor | None
    residual_in: torch.Tensor | None
    rms_gamma: torch.Tensor | None
    scale_factor: torch.Tensor | None
    rms_eps: float
    weight_bias: float


def apply_epilogue(problem: FusionProblem, tensors: FusionTensors, total: torch.Tensor) -> None:
    """Write every output that follows from the reduced ``total [tokens, hidden]``."""
    if tensors.output is not None and tensors.output is not total:
        tensors.output.copy_(total)
    if tensors.residual_in is None or tensors.rms_gamma is None:
        return
    residual = total + tensors.residual_in
    if tensors.residual_out is not None:
        tensors.residual_out.copy_(residual)
    norm = _rms_norm(residual, tensors.rms_gamma, tensors.rms_eps, tensors.weight_bias)
    if tensors.norm_out is not None:
        tensors.norm_out.copy_(norm)
    if tensors.quant_out is not None:
        _quantise(problem, tensors, norm, tensors.quant_out)


def _rms_norm(x: torch.Tensor, gamma: torch.Tensor, eps: float, weight_bias: float) -> torch.Tensor:
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (scaled * (gamma.float() + weight_bias)).to(x.dtype)


def _quantise(problem: FusionProblem, tensors: FusionTensors, norm: torch.Tensor, quant_out: torch.Tensor) -> None:
    """Write ``quant_out`` and computed scales; a value is its code times its scale."""
    wide = norm.float()
    if tensors.scale_factor is not None:
        scaled = wide / tensors.scale_factor
    else:
        groups = wide.unflatten(-1, (-1, problem.group_size or problem.hidden))
        scales = (groups.abs().amax(-1) / FP8_MAX).clamp_min(_SMALLEST_SCALE)
        scaled = (groups / scales.unsqueeze(-1)).flatten(-2)
        if tensors.scale_out is not None:
            tensors.scale_out.copy_(scales)
    quant_out.copy_(scaled.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn))
