"""fp8 products whose scales cover blocks of the operands: 1x128 for activations and 128x128 for weights, or others."""

from __future__ import annotations

from typing import Any

import torch

from warploom.core.backends import Operator
from warploom.core.calls import once_per_layout
from warploom.core.errors import ArgumentError
from warploom.core.tensors import Checker, as_tensor, as_tensors
from warploom.core.torch_ops import register_op
from warploom.gemm.backends.cublaslt.groupwise import CublasltGroupwise
from warploom.gemm.backends.hopper.groupwise import HopperGroupwise
from warploom.gemm.backends.reference.groupwise import ReferenceGroupwise
from warploom.gemm.formats import FP8_DTYPES, OUT_DTYPES, Output, check_output
from warploom.gemm.problems.groupwise import GroupwiseProblem
from warploom.gemm.quantize import per_block_quant_fp8, per_token_group_quant_fp8
from warploom.gemm.scales import Granularity, check_block_scales, layout_of, logical_scale

__all__ = [
    "GEMM_FP8_NT_GROUPWISE",
    "fp8_blockscale_gemm_sm90",
    "gemm_fp8_nt_blockscaled",
    "gemm_fp8_nt_groupwise",
]

GEMM_FP8_NT_GROUPWISE = Operator(
    "gemm_fp8_nt_groupwise", family="gemm", backends=(HopperGroupwise(), CublasltGroupwise(), ReferenceGroupwise())
)
_BLOCK = 128


def gemm_fp8_nt_groupwise(
    a: Any,
    b: Any,
    a_scale: Any,
    b_scale: Any,
    scale_major_mode: str | None = None,
    scale_granularity_mnk: Granularity = (1, 128, 128),
    out: Any = None,
    out_dtype: torch.dtype | str | None = None,
    *,
    backend: str = "auto",
) -> torch.Tensor:
    """Multiply fp8 matrices with block scales: ``out = (a * a_scale) @ (b * b_scale).T``.

    Each block of K is summed on its own and promoted to float32 times both scales, the recipe of DeepSeek-V3
    (arXiv:2412.19437, section 3.3.2). With the granularity (gm, gn, gk), ``a_scale`` covers blocks of gm rows by gk
    columns of `a` and ``b_scale`` gn by gk of `b`; blocks at the edges may be partial.

    Parameters
    ----------
    a : Tensor ``[m, k]``
        float8_e4m3fn or float8_e5m2; contiguous rows are fastest.
    b : Tensor ``[n, k]``
        fp8; contiguous rows are fastest.
    a_scale : Tensor ``[ceil(m / gm), ceil(k / gk)]``
        float32. With ``scale_major_mode="MN"`` it is stored the other way, ``[ceil(k / gk), ceil(m / gm)]``.
    b_scale : Tensor ``[ceil(n / gn), ceil(k / gk)]``
        float32, and transposed likewise.
    scale_major_mode : {None, "MN", "K"}
        The shape of both scales. None takes the shapes above with any strides, such as the column-major scales of
        `per_token_group_quant_fp8`, the layout that cuBLASLt and Hopper kernels read directly.
    scale_granularity_mnk : tuple of int
        (gm, gn, gk).
    out : Tensor ``[m, n]``, optional
        Written in place and returned. Rows must be contiguous.
    out_dtype : torch.dtype, optional
        bfloat16, float16, float32 or float8_e4m3fn, which saturates; by default that of `out`, else bfloat16.
    backend : str
        "auto", or a name of ``GEMM_FP8_NT_GROUPWISE.backend_names``.

    Returns
    -------
    Tensor ``[m, n]``

    Raises
    ------
    ArgumentError
        A dtype, shape, device or stride is wrong.
    UnsupportedError
        The named backend cannot serve this problem; the message is the table of backends.

    Examples
    --------
    >>> import torch
    >>> from warploom.gemm import gemm_fp8_nt_groupwise
    >>> a = torch.ones(2, 256).to(torch.float8_e4m3fn)
    >>> b = torch.ones(3, 256).to(torch.float8_e4m3fn)
    >>> gemm_fp8_nt_groupwise(a, b, torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.ones(1, 2)).tolist()
    [[384.0, 384.0, 384.0], [128.0, 128.0, 128.0]]
    """
    a, b, a_scale, b_scale, out = as_tensors(
        "gemm_fp8_nt_groupwise", a=a, b=b, a_scale=a_scale, b_scale=b_scale, out=out
    )
    output, granularity = _check(a, b, a_scale, b_scale, scale_major_mode, scale_granularity_mnk, out, out_dtype)
    out = output.tensor(out, like=a)
    scales = logical_scale(a_scale, scale_major_mode), logical_scale(b_scale, scale_major_mode)
    _gemm_fp8_nt_groupwise(out, a, b, *scales, list(granularity), backend)
    return out


@once_per_layout
def _check(
    a: Any,
    b: Any,
    a_scale: Any,
    b_scale: Any,
    mode: str | None,
    granularity: Any,
    out: Any,
    out_dtype: torch.dtype | str | None,
) -> tuple[Output, Granularity]:
    check = Checker("gemm_fp8_nt_groupwise")
    check.tensor("a", a, "m k", dtype=FP8_DTYPES)
    check.tensor("b", b, "n k", dtype=FP8_DTYPES)
    granularity = check_block_scales(check, a_scale, b_scale, granularity, mode, rows=check["m"])
    return check_output(check, out, (check["m"], check["n"]), out_dtype, torch.bfloat16, OUT_DTYPES), granularity


def _problem(
    out: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    granularity: Granularity,
) -> GroupwiseProblem:
    return GroupwiseProblem(
        m=a.shape[0],
        n=b.shape[0],
        k=a.shape[1],
        a_dtype=a.dtype,
        b_dtype=b.dtype,
        out_dtype=out.dtype,
        granularity=granularity,
        a_scale_layout=layout_of(a_scale),
        b_scale_layout=layout_of(b_scale),
        **GroupwiseProblem.where(a),
    )


@register_op(
    "gemm_fp8_nt_groupwise(Tensor(a!) out, Tensor a, Tensor b, Tensor a_scale, Tensor b_scale, int[] granularity,"
    " str backend) -> ()"
)
def _gemm_fp8_nt_groupwise(
    out: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    granularity: list[int],
    backend: str,
) -> None:
    GEMM_FP8_NT_GROUPWISE.call(_problem, backend, (out, a, b, a_scale, b_scale), (tuple(granularity),))


def gemm_fp8_nt_blockscaled(
    a: Any,
    b: Any,
    a_scale: Any,
    b_scale: Any,
    scale_major_mode: str | None = "MN",
    out: Any = None,
    out_dtype: torch.dtype | str | None = None,
    *,
    backend: str = "auto",
) -> torch.Tensor:
    """Multiply fp8 matrices with 128x128 scales on both sides.

    `gemm_fp8_nt_groupwise` with the granularity (128, 128, 128): ``a_scale`` is ``[ceil(k / 128), ceil(m / 128)]`` with
    the default "MN" and ``[ceil(m / 128), ceil(k / 128)]`` with "K" or None, and ``b_scale`` likewise.

    Parameters
    ----------
    a, b, a_scale, b_scale, scale_major_mode, out, out_dtype, backend
        As in `gemm_fp8_nt_groupwise`.

    Returns
    -------
    Tensor ``[m, n]``

    Raises
    ------
    ArgumentError, UnsupportedError
        As `gemm_fp8_nt_groupwise`.

    Examples
    --------
    >>> import torch
    >>> from warploom.gemm import gemm_fp8_nt_blockscaled
    >>> a = torch.ones(1, 128).to(torch.float8_e4m3fn)
    >>> gemm_fp8_nt_blockscaled(a, a, torch.tensor([[2.0]]), torch.tensor([[0.5]])).tolist()
    [[128.0]]
    """
    return gemm_fp8_nt_groupwise(
        a, b, a_scale, b_scale, scale_major_mode, (_BLOCK, _BLOCK, _BLOCK), out, out_dtype, backend=backend
    )


def fp8_blockscale_gemm_sm90(
    input: Any,
    weight: Any,
    input_scale: Any = None,
    weight_scale: Any = None,
    out: Any = None,
    out_dtype: torch.dtype | str | None = None,
    *,
    backend: str = "auto",
) -> torch.Tensor:
    """Multiply an activation by a weight in block-scaled fp8, quantising what is still bfloat16.

    A bfloat16 `input` is quantised 1x128 by `per_token_group_quant_fp8`, a bfloat16 `weight` 128x128 by
    `per_block_quant_fp8`. Named after FlashInfer's operator; it runs on any device that has a backend.

    Parameters
    ----------
    input : Tensor ``[m, k]``
        bfloat16, or float8_e4m3fn with `input_scale`.
    weight : Tensor ``[n, k]``
        bfloat16, or float8_e4m3fn with `weight_scale`.
    input_scale : Tensor ``[m, ceil(k / 128)]``, optional
        float32, any strides.
    weight_scale : Tensor ``[ceil(n / 128), ceil(k / 128)]`` or ``[n, ceil(k / 128)]``, optional
        float32, any strides.
    out : Tensor ``[m, n]``, optional
        Written in place and returned. Rows must be contiguous.
    out_dtype : torch.dtype, optional
        bfloat16, float16 or float32; by default that of `out`, else bfloat16.
    backend : str
        Backend of the product: "auto", or a name of ``GEMM_FP8_NT_GROUPWISE.backend_names``.

    Returns
    -------
    Tensor ``[m, n]``

    Raises
    ------
    ArgumentError
        A scale is missing, or given for an operand that is not fp8, or as in `gemm_fp8_nt_groupwise`.

    Examples
    --------
    >>> import torch
    >>> from warploom.gemm import fp8_blockscale_gemm_sm90
    >>> fp8_blockscale_gemm_sm90(torch.ones(1, 128).bfloat16(), torch.ones(2, 128).bfloat16()).tolist()
    [[128.0, 128.0]]
    """
    check = Checker("fp8_blockscale_gemm_sm90")
    accepted = (torch.bfloat16, torch.float8_e4m3fn)
    input = check.tensor("input", input, "m k", dtype=accepted)
    weight = check.tensor("weight", weight, "n k", dtype=accepted)
    a, a_scale = input, _given_scale(check, "input", input, input_scale)
    b, b_scale = weight, _given_scale(check, "weight", weight, weight_scale)
    if a_scale is None:
        a, a_scale = per_token_group_quant_fp8(input, _BLOCK, column_major_scales=True)
    if b_scale is None:
        b, b_scale = per_block_quant_fp8(weight)
    by_row = b_scale.shape[0] == check["n"] and check["n"] > 1
    granularity = (1, 1 if by_row else _BLOCK, _BLOCK)
    return gemm_fp8_nt_groupwise(a, b, a_scale, b_scale, None, granularity, out, out_dtype, backend=backend)


def _given_scale(check: Checker, name: str, operand: torch.Tensor, scale: Any) -> torch.Tensor | None:
    """The caller's scale of an fp8 operand; None for a bfloat16 one, which is to be quantised."""
    quantised = operand.dtype != torch.bfloat16
    if quantised == (scale is None):
        expected = "given for an fp8 operand" if quantised else f"None for a bfloat16 `{name}`, which is quantised here"
        raise ArgumentError.of(check.op, f"{name}_scale", expected, "None" if scale is None else "a tensor")
    return None if scale is None else as_tensor(scale, check.op, f"{name}_scale")
