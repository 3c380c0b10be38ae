"""Quantisers to fp8 fused with what a model computes just before: SiLU-and-multiply, and RMSNorm after its residual.

The result of that is float32 and is quantised as it is: it is not rounded to the dtype of the input in between, as it
would be by two operators in a row. What is computed is written in ``backends/reference/quantize_fused.py``.
"""

from __future__ import annotations

from typing import Any

import torch

from warploom.core.backends import Operator
from warploom.core.calls import once_per_layout
from warploom.core.errors import ArgumentError
from warploom.core.tensors import Checker, as_tensors
from warploom.core.torch_ops import register_op
from warploom.gemm.backends.cuda.quantize_fused import CudaRmsNormQuant, CudaSiluAndMulQuant
from warploom.gemm.backends.reference.quantize_fused import ReferenceRmsNormQuant, ReferenceSiluAndMulQuant
from warploom.gemm.formats import FLOAT_DTYPES
from warploom.gemm.fp8_outputs import (
    TMA_FLOATS,
    QuantOutputs,
    ScaleOutput,
    as_batch,
    check_eps,
    check_fp8_output,
    check_given_scale,
    check_group_size,
    check_scale_output,
    rows_aligned,
    writes_aligned,
)
from warploom.gemm.offsets import INDEX_DTYPES, check_indices
from warploom.gemm.problems.quantize_fused import RmsNormQuantProblem, SiluAndMulQuantProblem
from warploom.gemm.scales import ceil_div

__all__ = ["RMSNORM_QUANT_FP8", "SILU_AND_MUL_QUANT_FP8", "rmsnorm_quant_fp8", "silu_and_mul_quant_fp8"]

SILU_AND_MUL_QUANT_FP8 = Operator(
    "silu_and_mul_quant_fp8", family="gemm", backends=(CudaSiluAndMulQuant(), ReferenceSiluAndMulQuant())
)
RMSNORM_QUANT_FP8 = Operator("rmsnorm_quant_fp8", family="gemm", backends=(CudaRmsNormQuant(), ReferenceRmsNormQuant()))

_WHOLE_ROW = -1  # as a group size


def silu_and_mul_quant_fp8(
    x: Any,
    group_size: int | None = 128,
    eps: float = 1e-10,
    dtype: torch.dtype | str = torch.float8_e4m3fn,
    column_major_scales: bool = False,
    scale_tma_aligned: bool = False,
    scale_ue8m0: bool = False,
    out: Any = None,
    out_scale: Any = None,
    *,
    scale: Any = None,
    masked_m: Any = None,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Multiply by gates and quantise to fp8: ``y = silu(x[..., :d]) * x[..., d:]``, the activation of gated MLPs.

    ``silu(g) = g / (1 + exp(-g))`` [1]_ [2]_, in float32. `y` is quantised as `per_token_group_quant_fp8` does, or with a
    given scale as `per_tensor_quant_fp8` does, without being rounded to the dtype of `x` first. A gate of minus infinity
    counts as 0, which is the limit (``torch.nn.functional.silu`` gives NaN); gates below -87 do too.

    Parameters
    ----------
    x : Tensor ``[..., tokens, 2 * d]``
        bfloat16, float16 or float32: the gates, then what they multiply. Channels must be contiguous for the CUDA
        kernel; leading dimensions are batches.
    group_size : int, optional
        Channels of the result that share a scale. The last group of a row may be shorter. None with `scale`.
    eps, dtype, column_major_scales, scale_tma_aligned, scale_ue8m0
        As in `per_token_group_quant_fp8`.
    out : Tensor ``[..., tokens, d]``, optional
        fp8, contiguous; written in place and returned.
    out_scale : Tensor ``[..., tokens, ceil(d / group_size)]``, optional
        float32 with any strides, which decide the layout; written in place and returned. Not with `scale`.
    scale : Tensor ``[1]``, optional
        float32, positive: the (static) scale of the whole result; returned as the scale. Values beyond the range
        saturate, infinities included.
    masked_m : Tensor ``[tensors]``, optional
        int32 or int64 on the device, for ``x[tensors, max_m, 2 * d]``: of each tensor, such as the tokens of an expert,
        only the first ``masked_m[i]`` rows are computed, as `batch_gemm_fp8_nt_groupwise_masked` reads them. The other
        rows of both results are not written: they hold no defined value, or what the caller's had. The shapes do not
        depend on the numbers, so that a CUDA graph can be replayed after they changed.
    backend : str
        "auto", or a name of ``SILU_AND_MUL_QUANT_FP8.backend_names``.

    Returns
    -------
    q : Tensor ``[..., tokens, d]``
        fp8, contiguous.
    scale : Tensor ``[..., tokens, ceil(d / group_size)]``, or ``[1]``
        float32; ``y ~= q * scale``.

    Raises
    ------
    ArgumentError
        A dtype, shape, device, stride or value is wrong; with the setting ``debug_checks`` also a value of `masked_m`.
    UnsupportedError
        The named backend cannot serve this problem; the message is the table of backends.

    References
    ----------
    .. [1] S. Elfwing, E. Uchibe, K. Doya, "Sigmoid-weighted linear units for neural network function approximation in
       reinforcement learning", arXiv:1702.03118.
    .. [2] N. Shazeer, "GLU variants improve transformer", arXiv:2002.05202.

    Examples
    --------
    >>> import torch
    >>> from warploom.gemm import silu_and_mul_quant_fp8
    >>> q, scale = silu_and_mul_quant_fp8(torch.tensor([[30.0, 60.0, 1.0, -0.25]]), group_size=2)
    >>> q.float().tolist(), (q.float() * scale).tolist()
    ([[448.0, -224.0]], [[30.0, -15.0]])
    """
    x, masked_m, scale, out, out_scale = as_tensors(
        "silu_and_mul_quant_fp8", x=x, masked_m=masked_m, scale=scale, out=out, out_scale=out_scale
    )
    padding = TMA_FLOATS if scale_tma_aligned else 1
    outputs = _check_silu(x, masked_m, group_size, eps, dtype, column_major_scales, padding, scale, out, out_scale)
    static = None if scale is None else scale.reshape(1)
    q, scales = outputs.tensors(out, out_scale if static is None else static, like=x)
    computed = scales if static is None else None
    _silu_and_mul_quant_fp8(q, computed, x, static, masked_m, group_size, eps, scale_ue8m0, backend)
    return q, scales


@once_per_layout
def _check_silu(
    x: Any,
    masked_m: Any,
    group_size: Any,
    eps: float,
    dtype: torch.dtype | str,
    column_major: bool,
    padding: int,
    scale: Any,
    out: Any,
    out_scale: Any,
) -> QuantOutputs:
    check = Checker("silu_and_mul_quant_fp8")
    dims = "*lead channels" if masked_m is None else "tensors max_m channels"
    x = check.tensor("x", x, dims, dtype=FLOAT_DTYPES)
    if check["channels"] % 2:
        raise ArgumentError.of(check.op, "x", "of an even number of channels", f"shape {tuple(x.shape)}")
    check_eps(check, eps)
    check.tensor("masked_m", masked_m, "tensors", dtype=INDEX_DTYPES, optional=True)
    values = check_fp8_output(check, (*x.shape[:-1], x.shape[-1] // 2), out, dtype)
    scales = _check_scales(check, values.shape, group_size, scale, out_scale, column_major, padding)
    return QuantOutputs(values, scales)


def rmsnorm_quant_fp8(
    x: Any,
    weight: Any,
    residual: Any = None,
    norm_eps: float = 1e-6,
    group_size: int | None = 128,
    eps: float = 1e-10,
    dtype: torch.dtype | str = torch.float8_e4m3fn,
    column_major_scales: bool = False,
    scale_tma_aligned: bool = False,
    scale_ue8m0: bool = False,
    out: Any = None,
    out_scale: Any = None,
    *,
    scale: Any = None,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalise rows by their root mean square and quantise them to fp8, after adding them to a residual.

    With a `residual`, first ``residual += x``, rounded to the dtype of the residual, and what follows takes the rounded
    sum for `x`, as the ``fused_add_rmsnorm`` of vLLM and FlashInfer does. Then, in float32,
    ``y = x * rsqrt(mean(x ** 2) + norm_eps) * weight`` [1]_. `y` is quantised as `per_token_group_quant_fp8` does, or with
    a given scale as `per_tensor_quant_fp8` does, without being rounded to the dtype of `x` first.

    A NaN makes its row NaN. A row whose squares exceed float32 gives zeros, with NaN at its infinities.

    Parameters
    ----------
    x : Tensor ``[..., tokens, hidden]``
        bfloat16, float16 or float32. Channels must be contiguous for the CUDA kernel, which holds rows of up to 16384 in
        registers; leading dimensions are batches.
    weight : Tensor ``[hidden]``
        bfloat16, float16 or float32; of the dtype of `x` for the CUDA kernel.
    residual : Tensor like `x`, optional
        Updated in place. bfloat16, float16 or float32; of the dtype of `x` for the CUDA kernel.
    norm_eps : float
        Added to the mean square, at least 0.
    group_size : int, optional
        Channels that share a scale. The last group of a row may be shorter. -1: all channels of a token share one. None
        with `scale`.
    eps, dtype, column_major_scales, scale_tma_aligned, scale_ue8m0
        As in `per_token_group_quant_fp8`.
    out : Tensor like `x`, optional
        fp8, contiguous; written in place and returned.
    out_scale : Tensor ``[..., tokens, ceil(hidden / group_size)]``, optional
        float32 with any strides, which decide the layout; written in place and returned. Not with `scale`.
    scale : Tensor ``[1]``, optional
        float32, positive: the (static) scale of the whole result; returned as the scale. Values beyond the range
        saturate, infinities included.
    backend : str
        "auto", or a name of ``RMSNORM_QUANT_FP8.backend_names``.

    Returns
    -------
    q : Tensor like `x`
        fp8, contiguous.
    scale : Tensor ``[..., tokens, ceil(hidden / group_size)]``, ``[..., tokens, 1]`` or ``[1]``
        float32; ``y ~= q * scale``.

    Raises
    ------
    ArgumentError
        A dtype, shape, device, stride or value is wrong.
    UnsupportedError
        The named backend cannot serve this problem; the message is the table of backends.

    References
    ----------
    .. [1] B. Zhang, R. Sennrich, "Root mean square layer normalization", arXiv:1910.07467.

    Examples
    --------
    >>> import torch
    >>> from warploom.gemm import rmsnorm_quant_fp8
    >>> residual = torch.tensor([[3.0, 1.0]])
    >>> q, scale = rmsnorm_quant_fp8(torch.tensor([[4.0, 0.0]]), torch.ones(2), residual)
    >>> residual, q.float(), q.float() * scale
    (tensor([[7., 1.]]), tensor([[448.,  64.]]), tensor([[1.4000, 0.2000]]))
    """
    x, weight, residual, scale, out, out_scale = as_tensors(
        "rmsnorm_quant_fp8", x=x, weight=weight, residual=residual, scale=scale, out=out, out_scale=out_scale
    )
    padding = TMA_FLOATS if scale_tma_aligned else 1
    numbers = norm_eps, group_size, eps
    outputs = _check_rmsnorm(x, weight, residual, *numbers, dtype, column_major_scales, padding, scale, out, out_scale)
    static = None if scale is None else scale.reshape(1)
    q, scales = outputs.tensors(out, out_scale if static is None else static, like=x)
    computed = scales if static is None else None
    _rmsnorm_quant_fp8(q, computed, residual, x, weight, static, norm_eps, group_size, eps, scale_ue8m0, backend)
    return q, scales


@once_per_layout
def _check_rmsnorm(
    x: Any,
    weight: Any,
    residual: Any,
    norm_eps: float,
    group_size: Any,
    eps: float,
    dtype: torch.dtype | str,
    column_major: bool,
    padding: int,
    scale: Any,
    out: Any,
    out_scale: Any,
) -> QuantOutputs:
    check = Checker("rmsnorm_quant_fp8")
    x = check.tensor("x", x, "*lead hidden", dtype=FLOAT_DTYPES)
    check.tensor("weight", weight, "hidden", dtype=FLOAT_DTYPES)
    check.require(check["hidden"] > 0, "x", "of at least one channel", "none")
    check.require(norm_eps >= 0, "norm_eps", "at least 0", norm_eps)
    check_eps(check, eps)
    _check_residual(check, x, residual)
    values = check_fp8_output(check, tuple(x.shape), out, dtype)
    scales = _check_scales(check, values.shape, group_size, scale, out_scale, column_major, padding, takes_rows=True)
    return QuantOutputs(values, scales)


def _check_scales(
    check: Checker,
    shape: tuple[int, ...],
    group_size: Any,
    scale: Any,
    out_scale: Any,
    column_major: bool,
    padding: int,
    takes_rows: bool = False,
) -> ScaleOutput:
    """The one scale that is given, where `group_size` is None, or those to compute: of groups, or of whole rows."""
    if scale is not None:
        check.require(group_size is None, "group_size", "None where `scale` is given", group_size)
        return check_given_scale(check, scale, out_scale)
    check.require(group_size is not None, "scale", "given where `group_size` is None", "None")
    of_rows = takes_rows and group_size == _WHOLE_ROW
    if not of_rows:
        check_group_size(check, group_size)
    groups = 1 if of_rows else ceil_div(shape[-1], group_size)
    return check_scale_output(check, out_scale, (*shape[:-1], groups), column_major and len(shape) > 1, padding)


def _check_residual(check: Checker, x: torch.Tensor, residual: Any) -> None:
    """A residual must be one that can be updated row by row."""
    residual = check.tensor("residual", residual, "*lead hidden", dtype=FLOAT_DTYPES, optional=True)
    if residual is None:
        return
    if residual.shape != x.shape:
        raise ArgumentError.of(check.op, "residual", f"of shape {tuple(x.shape)}", f"shape {tuple(residual.shape)}")
    expected = ""
    if any(size > 1 and stride == 0 for size, stride in zip(residual.shape, residual.stride(), strict=True)):
        expected = "of elements that do not repeat: it is updated"
    elif residual.dim() > 3 and not residual.is_contiguous():
        expected = "contiguous when it has several batch dimensions"
    if expected:
        raise ArgumentError.of(check.op, "residual", expected, f"strides {residual.stride()}")


@register_op(
    "silu_and_mul_quant_fp8(Tensor(a!) out, Tensor(b!)? out_scale, Tensor x, Tensor? scale, Tensor? masked_m,"
    " int? group_size, float eps, bool scale_ue8m0, str backend) -> ()"
)
def _silu_and_mul_quant_fp8(
    q: torch.Tensor,
    out_scale: torch.Tensor | None,
    x: torch.Tensor,
    scale: torch.Tensor | None,
    masked_m: torch.Tensor | None,
    group_size: int | None,
    eps: float,
    ue8m0: bool,
    backend: str,
) -> None:
    q, x = as_batch(q), as_batch(x)
    check_indices("silu_and_mul_quant_fp8", "masked_m", masked_m, q.shape[1] + 1)
    scales = scale if out_scale is None else as_batch(out_scale)
    SILU_AND_MUL_QUANT_FP8.call(_silu_problem, backend, (q, scales, x, masked_m), (group_size, ue8m0), (eps,))


def _silu_problem(
    q: torch.Tensor,
    scales: torch.Tensor,
    x: torch.Tensor,
    masked_m: torch.Tensor | None,
    group_size: int | None,
    ue8m0: bool,
) -> SiluAndMulQuantProblem:
    batch, rows, columns = q.shape
    return SiluAndMulQuantProblem(
        batch=batch,
        rows=rows,
        columns=columns,
        group_size=group_size,
        dtype=x.dtype,
        out_dtype=q.dtype,
        power_of_two=ue8m0,
        masked=masked_m is not None,
        aligned=rows_aligned(x) and writes_aligned(q, x),
        **SiluAndMulQuantProblem.where(x),
    )


@register_op(
    "rmsnorm_quant_fp8(Tensor(a!) out, Tensor(b!)? out_scale, Tensor(c!)? residual, Tensor x, Tensor weight,"
    " Tensor? scale, float norm_eps, int? group_size, float eps, bool scale_ue8m0, str backend) -> ()"
)
def _rmsnorm_quant_fp8(
    q: torch.Tensor,
    out_scale: torch.Tensor | None,
    residual: torch.Tensor | None,
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    norm_eps: float,
    group_size: int | None,
    eps: float,
    ue8m0: bool,
    backend: str,
) -> None:
    residual = None if residual is None else as_batch(residual)
    tensors = as_batch(q), scale if out_scale is None else as_batch(out_scale), residual, as_batch(x), weight
    RMSNORM_QUANT_FP8.call(_rmsnorm_problem, backend, tensors, (group_size, ue8m0), (norm_eps, eps))


def _rmsnorm_problem(
    q: torch.Tensor,
    scales: torch.Tensor,
    residual: torch.Tensor | None,
    x: torch.Tensor,
    weight: torch.Tensor,
    group_size: int | None,
    ue8m0: bool,
) -> RmsNormQuantProblem:
    batch, rows, columns = x.shape
    read = [x, weight] if residual is None else [x, weight, residual]
    return RmsNormQuantProblem(
        batch=batch,
        rows=rows,
        columns=columns,
        group_size=group_size,
        dtype=x.dtype,
        weight_dtype=weight.dtype,
        out_dtype=q.dtype,
        residual_dtype=None if residual is None else residual.dtype,
        power_of_two=ue8m0,
        aligned=all(map(rows_aligned, read)) and writes_aligned(q, x),
        **RmsNormQuantProblem.where(x),
    )
