"""Quantisers to fp8: one scale for a tensor, for each group of a token's channels, or for each block of a weight.

Every scale undoes the quantisation: ``x ~= q * scale``. What is computed, to the bit and on every backend, is written
in ``backends/reference/quantize.py``.
"""

from __future__ import annotations

from typing import Any

import torch

from warploom.core.backends import Operator
from warploom.core.calls import once_per_layout
from warploom.core.errors import ArgumentError
from warploom.core.tensors import Checker, as_tensors
from warploom.core.torch_ops import register_op
from warploom.gemm.backends.cuda.quantize import CudaQuantizeBlocks, CudaQuantizeTensor
from warploom.gemm.backends.reference.quantize import ReferenceQuantizeBlocks, ReferenceQuantizeTensor
from warploom.gemm.formats import FLOAT_DTYPES
from warploom.gemm.fp8_outputs import (
    TMA_FLOATS,
    QuantOutputs,
    as_batch,
    check_eps,
    check_fp8_output,
    check_given_scale,
    check_group_size,
    check_scale_output,
    rows_aligned,
    writes_aligned,
)
from warploom.gemm.problems.quantize import QuantizeBlocksProblem, QuantizeTensorProblem
from warploom.gemm.scales import ceil_div

__all__ = [
    "PER_BLOCK_QUANT_FP8",
    "PER_TENSOR_QUANT_FP8",
    "PER_TOKEN_GROUP_QUANT_FP8",
    "per_block_quant_fp8",
    "per_tensor_quant_fp8",
    "per_token_group_quant_fp8",
]

PER_TOKEN_GROUP_QUANT_FP8 = Operator(
    "per_token_group_quant_fp8", family="gemm", backends=(CudaQuantizeBlocks(), ReferenceQuantizeBlocks())
)
PER_BLOCK_QUANT_FP8 = Operator(
    "per_block_quant_fp8", family="gemm", backends=(CudaQuantizeBlocks(), ReferenceQuantizeBlocks())
)
PER_TENSOR_QUANT_FP8 = Operator(
    "per_tensor_quant_fp8", family="gemm", backends=(CudaQuantizeTensor(), ReferenceQuantizeTensor())
)


def per_token_group_quant_fp8(
    x: Any,
    group_size: int = 128,
    eps: float = 1e-10,
    dtype: torch.dtype | str = torch.float8_e4m3fn,
    column_major_scales: bool = False,
    scale_tma_aligned: bool = False,
    scale_ue8m0: bool = False,
    out: Any = None,
    out_scale: Any = None,
    *,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise activations to fp8 with one scale for each `group_size` channels of a token.

    ``scale = max(amax(group), eps) / fp8_max`` and ``q = fp8(x * (fp8_max / max(amax(group), eps)))``, rounded to
    nearest even. A group of zeros has the scale ``eps / fp8_max``. A NaN makes its group NaN, scale included; an
    infinity makes the scale infinite and itself NaN.

    Parameters
    ----------
    x : Tensor ``[..., tokens, channels]``
        bfloat16, float16 or float32. Channels must be contiguous for the CUDA kernel; leading dimensions are batches.
    group_size : int
        Channels that share a scale. The last group of a row may be shorter.
    eps : float
        Lower bound of the magnitude, at least 1e-30.
    dtype : torch.dtype
        float8_e4m3fn (largest value 448) or float8_e5m2 (57344).
    column_major_scales : bool
        Store the scales with tokens contiguous ("MN"-major), as cuBLASLt and Hopper kernels read them; the shape stays.
    scale_tma_aligned : bool
        With column-major scales: make the stride between groups a multiple of 4 (16 bytes), which TMA needs.
    scale_ue8m0 : bool
        Round scales up to powers of two.
    out : Tensor like `x`, optional
        fp8, contiguous; written in place and returned.
    out_scale : Tensor ``[..., tokens, ceil(channels / group_size)]``, optional
        float32 with any strides, which decide the layout; written in place and returned.
    backend : str
        "auto", or a name of ``PER_TOKEN_GROUP_QUANT_FP8.backend_names``.

    Returns
    -------
    q : Tensor like `x`
        fp8, contiguous.
    scale : Tensor ``[..., tokens, ceil(channels / group_size)]``
        float32.

    Raises
    ------
    ArgumentError
        A dtype, shape, device, stride or value is wrong.
    UnsupportedError
        The named backend cannot serve this problem; the message is the table of backends.

    Examples
    --------
    >>> import torch
    >>> from warploom.gemm import per_token_group_quant_fp8
    >>> q, scale = per_token_group_quant_fp8(torch.tensor([[448.0, 1.0, 0.0, -0.5]]), group_size=2)
    >>> q.float().tolist(), (q.float().view(2, 2) * scale.view(2, 1)).tolist()
    ([[448.0, 1.0, 0.0, -448.0]], [[448.0, 1.0], [0.0, -0.5]])
    """
    x, out, out_scale = as_tensors("per_token_group_quant_fp8", x=x, out=out, out_scale=out_scale)
    padding = TMA_FLOATS if scale_tma_aligned else 1
    outputs = _check_groups(x, group_size, eps, dtype, column_major_scales, padding, out, out_scale)
    q, scale = outputs.tensors(out, out_scale, like=x)
    _per_token_group_quant_fp8(q, scale, x, group_size, eps, scale_ue8m0, backend)
    return q, scale


@once_per_layout
def _check_groups(
    x: Any,
    group_size: int,
    eps: float,
    dtype: torch.dtype | str,
    column_major: bool,
    padding: int,
    out: Any,
    out_scale: Any,
) -> QuantOutputs:
    check = Checker("per_token_group_quant_fp8")
    x = check.tensor("x", x, "*lead channels", dtype=FLOAT_DTYPES)
    _check_shared(check, x, eps)
    check_group_size(check, group_size)
    values = check_fp8_output(check, tuple(x.shape), out, dtype)
    shape = (*x.shape[:-1], ceil_div(x.shape[-1], group_size))
    return QuantOutputs(values, check_scale_output(check, out_scale, shape, column_major and x.dim() > 1, padding))


def per_block_quant_fp8(
    x: Any,
    block_size: tuple[int, int] = (128, 128),
    eps: float = 1e-10,
    dtype: torch.dtype | str = torch.float8_e4m3fn,
    column_major_scales: bool = False,
    scale_ue8m0: bool = False,
    out: Any = None,
    out_scale: Any = None,
    *,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise weights to fp8 with one scale for each block of rows and columns.

    The arithmetic is that of `per_token_group_quant_fp8`.

    Parameters
    ----------
    x : Tensor ``[..., rows, columns]``
        bfloat16, float16 or float32; leading dimensions are batches, such as the experts of a layer.
    block_size : tuple of int
        Rows and columns that share a scale. Blocks at the edges may be smaller.
    eps, dtype, scale_ue8m0, backend
        As in `per_token_group_quant_fp8`.
    column_major_scales : bool
        Store the scales with row blocks contiguous ("MN"-major); the shape stays.
    out : Tensor like `x`, optional
        fp8, contiguous; written in place and returned.
    out_scale : Tensor ``[..., ceil(rows / block), ceil(columns / block)]``, optional
        float32 with any strides; written in place and returned.

    Returns
    -------
    q : Tensor like `x`
        fp8, contiguous.
    scale : Tensor ``[..., ceil(rows / block), ceil(columns / block)]``
        float32.

    Raises
    ------
    ArgumentError, UnsupportedError
        As `per_token_group_quant_fp8`.

    Examples
    --------
    >>> import torch
    >>> from warploom.gemm import per_block_quant_fp8
    >>> q, scale = per_block_quant_fp8(torch.full((130, 256), 7.0))
    >>> q.dtype, tuple(scale.shape), scale[0, 0].item() == 7 / 448
    (torch.float8_e4m3fn, (2, 2), True)
    """
    x, out, out_scale = as_tensors("per_block_quant_fp8", x=x, out=out, out_scale=out_scale)
    outputs = _check_blocks(x, block_size, eps, dtype, column_major_scales, out, out_scale)
    q, scale = outputs.tensors(out, out_scale, like=x)
    _per_block_quant_fp8(q, scale, x, list(block_size), eps, scale_ue8m0, backend)
    return q, scale


@once_per_layout
def _check_blocks(
    x: Any, block_size: Any, eps: float, dtype: torch.dtype | str, column_major: bool, out: Any, out_scale: Any
) -> QuantOutputs:
    check = Checker("per_block_quant_fp8")
    x = check.tensor("x", x, "*lead rows columns", dtype=FLOAT_DTYPES)
    _check_shared(check, x, eps)
    if not (isinstance(block_size, (tuple, list)) and len(block_size) == 2 and all(b > 0 for b in block_size)):
        raise ArgumentError.of(check.op, "block_size", "two positive integers (rows, columns)", repr(block_size))
    values = check_fp8_output(check, tuple(x.shape), out, dtype)
    shape = (*x.shape[:-2], ceil_div(x.shape[-2], block_size[0]), ceil_div(x.shape[-1], block_size[1]))
    return QuantOutputs(values, check_scale_output(check, out_scale, shape, column_major, 1))


def per_tensor_quant_fp8(
    x: Any,
    scale: Any = None,
    eps: float = 1e-10,
    dtype: torch.dtype | str = torch.float8_e4m3fn,
    out: Any = None,
    out_scale: Any = None,
    *,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise a tensor to fp8 with one scale: of its own largest magnitude, or a given (static) one.

    Without `scale` the arithmetic is that of `per_token_group_quant_fp8` with the whole tensor as one group. With it,
    ``q = fp8(x * (1 / scale))``, and values beyond the range saturate, infinities included.

    Parameters
    ----------
    x : Tensor, any shape
        bfloat16, float16 or float32.
    scale : Tensor ``[1]``, optional
        float32, positive; returned as the scale.
    eps, dtype, backend
        As in `per_token_group_quant_fp8`.
    out : Tensor like `x`, optional
        fp8, contiguous; written in place and returned.
    out_scale : Tensor ``[1]``, optional
        float32; written in place and returned. Not with `scale`.

    Returns
    -------
    q : Tensor like `x`
        fp8, contiguous.
    scale : Tensor ``[1]``
        float32.

    Raises
    ------
    ArgumentError, UnsupportedError
        As `per_token_group_quant_fp8`.

    Examples
    --------
    >>> import torch
    >>> from warploom.gemm import per_tensor_quant_fp8
    >>> q, scale = per_tensor_quant_fp8(torch.tensor([-896.0, 4.0]))
    >>> q.float().tolist(), scale.item()
    ([-448.0, 2.0], 2.0)
    """
    x, scale, out, out_scale = as_tensors("per_tensor_quant_fp8", x=x, scale=scale, out=out, out_scale=out_scale)
    outputs = _check_tensor(x, scale, eps, dtype, out, out_scale)
    if scale is None:
        q, scale = outputs.tensors(out, out_scale, like=x)
        _per_tensor_quant_fp8(q, scale, x, eps, backend)
    else:
        q, scale = outputs.tensors(out, scale.reshape(1), like=x)
        _cast_to_fp8(q, scale, x, backend)
    return q, scale


@once_per_layout
def _check_tensor(x: Any, scale: Any, eps: float, dtype: torch.dtype | str, out: Any, out_scale: Any) -> QuantOutputs:
    check = Checker("per_tensor_quant_fp8")
    x = check.tensor("x", x, "*lead", dtype=FLOAT_DTYPES)
    _check_shared(check, x, eps)
    values = check_fp8_output(check, tuple(x.shape), out, dtype)
    if scale is not None:
        return QuantOutputs(values, check_given_scale(check, scale, out_scale))
    return QuantOutputs(values, check_scale_output(check, out_scale, (1,), False, 1))


def _check_shared(check: Checker, x: torch.Tensor, eps: float) -> None:
    check.require(x.dim() > 0, "x", "at least 1-D", "0-D")
    check_eps(check, eps)


def _quantize_blocks(
    operator: Operator,
    q: torch.Tensor,
    scale: torch.Tensor,
    x: torch.Tensor,
    block: tuple[int, int],
    eps: float,
    power_of_two: bool,
    backend: str,
) -> None:
    tensors = as_batch(q), as_batch(scale), as_batch(x)
    operator.call(_blocks_problem, backend, tensors, (block, power_of_two), (eps,))


def _blocks_problem(
    q: torch.Tensor, scale: torch.Tensor, x: torch.Tensor, block: tuple[int, int], power_of_two: bool
) -> QuantizeBlocksProblem:
    batch, rows, columns = x.shape
    return QuantizeBlocksProblem(
        batch=batch,
        rows=rows,
        columns=columns,
        block=block,
        dtype=x.dtype,
        out_dtype=q.dtype,
        power_of_two=power_of_two,
        aligned=rows_aligned(x) and writes_aligned(q, x),
        **QuantizeBlocksProblem.where(x),
    )


@register_op(
    "per_token_group_quant_fp8(Tensor(a!) out, Tensor(b!) out_scale, Tensor x, int group_size, float eps,"
    " bool scale_ue8m0, str backend) -> ()"
)
def _per_token_group_quant_fp8(
    q: torch.Tensor, scale: torch.Tensor, x: torch.Tensor, group_size: int, eps: float, ue8m0: bool, backend: str
) -> None:
    _quantize_blocks(PER_TOKEN_GROUP_QUANT_FP8, q, scale, x, (1, group_size), eps, ue8m0, backend)


@register_op(
    "per_block_quant_fp8(Tensor(a!) out, Tensor(b!) out_scale, Tensor x, int[] block_size, float eps,"
    " bool scale_ue8m0, str backend) -> ()"
)
def _per_block_quant_fp8(
    q: torch.Tensor, scale: torch.Tensor, x: torch.Tensor, block: list[int], eps: float, ue8m0: bool, backend: str
) -> None:
    _quantize_blocks(PER_BLOCK_QUANT_FP8, q, scale, x, (block[0], block[1]), eps, ue8m0, backend)


def _quantize_tensor(
    q: torch.Tensor, scale: torch.Tensor, x: torch.Tensor, eps: float, static: bool, backend: str
) -> None:
    PER_TENSOR_QUANT_FP8.call(_tensor_problem, backend, (q, scale, x.contiguous()), (static,), (eps,))


def _tensor_problem(q: torch.Tensor, scale: torch.Tensor, x: torch.Tensor, static: bool) -> QuantizeTensorProblem:
    return QuantizeTensorProblem(
        numel=x.numel(),
        dtype=x.dtype,
        out_dtype=q.dtype,
        static=static,
        aligned=rows_aligned(x.view(-1)) and writes_aligned(q, x),
        **QuantizeTensorProblem.where(x),
    )


@register_op("per_tensor_quant_fp8(Tensor(a!) out, Tensor(b!) out_scale, Tensor x, float eps, str backend) -> ()")
def _per_tensor_quant_fp8(q: torch.Tensor, scale: torch.Tensor, x: torch.Tensor, eps: float, backend: str) -> None:
    _quantize_tensor(q, scale, x, eps, False, backend)


@register_op("cast_to_fp8(Tensor(a!) out, Tensor scale, Tensor x, str backend) -> ()")
def _cast_to_fp8(q: torch.Tensor, scale: torch.Tensor, x: torch.Tensor, backend: str) -> None:
    _quantize_tensor(q, scale, x, 1.0, True, backend)
