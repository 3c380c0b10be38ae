"""fp8 quantisers in plain torch, bit for bit what the CUDA kernels of ``include/warploom/gemm/quantize.cuh`` write.

The rule, for the largest magnitude ``amax`` of the elements that share a scale and the largest fp8 value ``limit``::

    amax    = max(amax, eps)              # NaN stays NaN
    scale   = amax / limit                # rounded up to a power of two if asked
    inverse = limit / amax                # 1 / scale for powers of two, which is exact
    q       = fp8(clamp(x * inverse))     # round to nearest even, saturating; NaN becomes the positive NaN

All in float32. A group of zeros gets the scale ``eps / limit``. A NaN makes its whole group NaN; an infinity gives an
infinite scale with NaN at the infinities and zeros elsewhere, so that dequantising yields NaN there too.
"""

from __future__ import annotations

import torch

from warploom.core.backends import Backend, Support
from warploom.gemm.problems.quantize import QuantizeBlocksProblem, QuantizeTensorProblem

__all__ = ["ReferenceQuantizeBlocks", "ReferenceQuantizeTensor", "cast", "inverse_of", "quantize_blocks"]


def _limit(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The largest fp8 value as a tensor on the device: torch divides by Python numbers on a GPU with wrong rounding."""
    return torch.full((), torch.finfo(dtype).max, dtype=torch.float32, device=device)


def _round_up_to_power_of_two(x: torch.Tensor) -> torch.Tensor:
    """The smallest power of two that is at least `x`, for positive normal numbers; NaN and infinity stay."""
    bits = x.view(torch.int32)
    exponent = (bits + 0x7FFFFF) & 0x7F800000
    return torch.where(x.isnan(), x, exponent.view(torch.float32))


def _scale_of(
    amax: torch.Tensor, eps: float, dtype: torch.dtype, power_of_two: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and the factor that quantises, of float32 magnitudes."""
    limit = _limit(dtype, amax.device)
    amax = amax.clamp(min=eps)
    scale = amax / limit
    if power_of_two:
        scale = _round_up_to_power_of_two(scale)
        return scale, inverse_of(scale)
    return scale, limit / amax


def cast(x: torch.Tensor, inverse: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``x * inverse`` in fp8. Clamped first: whether torch's own cast saturates depends on the type and the version."""
    limit = torch.finfo(dtype).max
    values = (x.float() * inverse).clamp(-limit, limit)
    return torch.where(values.isnan(), torch.nan, values).to(dtype)


def _blocks(x: torch.Tensor, block_rows: int, block_columns: int) -> torch.Tensor:
    """``[batch, row_blocks, block_rows, column_blocks, block_columns]`` of a matrix, with zeros at its edges."""
    batch, rows, columns = x.shape
    padded = torch.nn.functional.pad(x, (0, -columns % block_columns, 0, -rows % block_rows))
    return padded.view(
        batch, padded.shape[1] // block_rows, block_rows, padded.shape[2] // block_columns, block_columns
    )


def quantize_blocks(
    x: torch.Tensor, block: tuple[int, int], eps: float, dtype: torch.dtype, power_of_two: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and scales of ``x[batch, rows, columns]``, of which blocks share a scale; not empty."""
    _, rows, columns = x.shape
    blocks = _blocks(x, *block)
    scale, inverse = _scale_of(blocks.abs().amax(dim=(2, 4)).float(), eps, dtype, power_of_two)
    whole = cast(blocks, inverse[:, :, None, :, None], dtype).flatten(3, 4).flatten(1, 2)
    return whole[:, :rows, :columns], scale


def inverse_of(scale: torch.Tensor) -> torch.Tensor:
    """What a given scale multiplies by."""
    return torch.ones_like(scale) / scale


class ReferenceQuantizeBlocks(Backend):
    name = "reference"

    def supports(self, problem: QuantizeBlocksProblem) -> Support:
        return Support()

    def run(
        self, problem: QuantizeBlocksProblem, q: torch.Tensor, scale: torch.Tensor, x: torch.Tensor, eps: float
    ) -> None:
        if x.numel() == 0:
            return
        values, scales = quantize_blocks(x, problem.block, eps, q.dtype, problem.power_of_two)
        q.copy_(values)
        scale.copy_(scales)


class ReferenceQuantizeTensor(Backend):
    name = "reference"

    def supports(self, problem: QuantizeTensorProblem) -> Support:
        return Support()

    def run(
        self, problem: QuantizeTensorProblem, q: torch.Tensor, scale: torch.Tensor, x: torch.Tensor, eps: float
    ) -> None:
        if problem.static:
            inverse = inverse_of(scale)
        else:
            amax = x.abs().amax().float() if x.numel() else torch.zeros((), dtype=torch.float32, device=x.device)
            new_scale, inverse = _scale_of(amax.view(1), eps, q.dtype, power_of_two=False)
            scale.copy_(new_scale)
        q.copy_(cast(x, inverse, q.dtype))
