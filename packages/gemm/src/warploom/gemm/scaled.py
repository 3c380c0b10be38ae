"""Products of fp8 matrices whose scales cover whole tensors or rows."""

from __future__ import annotations

from typing import Any

import torch

from warploom.core.backends import Operator
from warploom.core.calls import once_per_layout
from warploom.core.errors import ArgumentError
from warploom.core.tensors import Checker, as_tensors
from warploom.core.torch_ops import register_op
from warploom.gemm.backends.cublaslt.scaled import CublasltScaledBmm, CublasltScaledMm
from warploom.gemm.backends.hopper.scaled import HopperScaled
from warploom.gemm.backends.reference.scaled import ReferenceScaled
from warploom.gemm.formats import FLOAT_DTYPES, FP8_DTYPES, OUT_DTYPES, Output, check_activation, check_output
from warploom.gemm.problems.scaled import ScaledProblem

__all__ = ["BMM_FP8", "MM_FP8", "bmm_fp8", "check_scale_rows", "mm_fp8"]

MM_FP8 = Operator("mm_fp8", family="gemm", backends=(HopperScaled(), CublasltScaledMm(), ReferenceScaled()))
BMM_FP8 = Operator("bmm_fp8", family="gemm", backends=(HopperScaled(), CublasltScaledBmm(), ReferenceScaled()))


def check_scale_rows(check: Checker, name: str, scale: Any, rows: int) -> None:
    """Check a scale that is one number or one per row."""
    tensor = check.tensor(name, scale, f"*{name}", dtype=torch.float32)
    numel = tensor.numel()
    one_axis = sum(size != 1 for size in tensor.shape) <= 1
    if not one_axis or numel not in (1, rows):
        expected = "one float32" if rows == 1 else f"one float32, or one for each of the {rows} rows"
        raise ArgumentError.of(check.op, name, expected, f"shape {tuple(tensor.shape)}")


def mm_fp8(
    a: Any,
    b: Any,
    a_scale: Any,
    b_scale: Any,
    bias: Any = None,
    out: Any = None,
    out_dtype: torch.dtype | str | None = None,
    *,
    activation: str | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Multiply two fp8 matrices: ``out = activation((a * a_scale) @ (b * b_scale) + bias)``, summed in float32.

    Parameters
    ----------
    a : Tensor ``[m, k]``
        float8_e4m3fn or float8_e5m2, any strides; contiguous rows are fastest.
    b : Tensor ``[k, n]``
        fp8, any strides; fastest as the transpose of a weight stored ``[n, k]``: ``weight.t()``. Others are copied.
    a_scale : Tensor ``[1]``, ``[m]`` or ``[m, 1]``
        float32 factors that undo the quantisation of `a`: for the whole tensor or for each row.
    b_scale : Tensor ``[1]``, ``[n]`` or ``[1, n]``
        The same for `b`: for the whole tensor or for each column.
    bias : Tensor ``[n]``, optional
        bfloat16, float16 or float32.
    out : Tensor ``[m, n]``, optional
        Written in place and returned. Rows must be contiguous.
    out_dtype : torch.dtype, optional
        bfloat16, float16, float32 or float8_e4m3fn, which saturates; by default that of `out`, else bfloat16.
    activation : {None, "relu", "gelu", "silu"}
        Applied to each element before the result is rounded; "gelu" is the exact one.
    backend : str
        "auto", or a name of ``MM_FP8.backend_names``.

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
    >>> from warploom.gemm import mm_fp8
    >>> a = torch.ones(2, 16).to(torch.float8_e4m3fn)
    >>> weight = torch.ones(3, 16).to(torch.float8_e4m3fn)
    >>> mm_fp8(a, weight.t(), torch.tensor([0.5, 1.0]), torch.tensor([2.0])).tolist()
    [[16.0, 16.0, 16.0], [32.0, 32.0, 32.0]]
    """
    a, b, a_scale, b_scale, bias, out = as_tensors(
        "mm_fp8", a=a, b=b, a_scale=a_scale, b_scale=b_scale, bias=bias, out=out
    )
    output, name = _check_mm(a, b, a_scale, b_scale, bias, out, out_dtype, activation)
    out = output.tensor(out, like=a)
    _mm_fp8(out, a, b, a_scale.reshape(-1, 1), b_scale.reshape(1, -1), bias, name, backend)
    return out


@once_per_layout
def _check_mm(
    a: Any,
    b: Any,
    a_scale: Any,
    b_scale: Any,
    bias: Any,
    out: Any,
    out_dtype: torch.dtype | str | None,
    activation: str | None,
) -> tuple[Output, str]:
    check = Checker("mm_fp8")
    check.tensor("a", a, "m k", dtype=FP8_DTYPES)
    check.tensor("b", b, "k n", dtype=FP8_DTYPES)
    check_scale_rows(check, "a_scale", a_scale, check["m"])
    check_scale_rows(check, "b_scale", b_scale, check["n"])
    check.tensor("bias", bias, "n", dtype=FLOAT_DTYPES, optional=True)
    name = check_activation(check, activation)
    return check_output(check, out, (check["m"], check["n"]), out_dtype, torch.bfloat16, OUT_DTYPES), name


def _mm_problem(
    out: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str,
) -> ScaledProblem:
    return ScaledProblem(
        m=a.shape[0],
        n=b.shape[1],
        k=a.shape[1],
        a_dtype=a.dtype,
        b_dtype=b.dtype,
        out_dtype=out.dtype,
        a_scaling="tensor" if a_scale.numel() == 1 else "row",
        b_scaling="tensor" if b_scale.numel() == 1 else "row",
        has_bias=bias is not None,
        activation=activation,
        **ScaledProblem.where(a),
    )


@register_op(
    "mm_fp8(Tensor(a!) out, Tensor a, Tensor b, Tensor a_scale, Tensor b_scale, Tensor? bias, str activation,"
    " str backend) -> ()"
)
def _mm_fp8(
    out: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str,
    backend: str,
) -> None:
    MM_FP8.call(_mm_problem, backend, (out, a, b, a_scale, b_scale, bias), (activation,))


def bmm_fp8(
    A: Any,
    B: Any,
    A_scale: Any,
    B_scale: Any,
    dtype: torch.dtype | str | None = None,
    out: Any = None,
    *,
    backend: str = "auto",
) -> torch.Tensor:
    """Multiply batches of fp8 matrices: ``out[i] = (A[i] @ B[i]) * A_scale * B_scale``, summed in float32.

    Parameters
    ----------
    A : Tensor ``[batch, m, k]``
        float8_e4m3fn or float8_e5m2, any strides; contiguous rows are fastest.
    B : Tensor ``[batch, k, n]``
        fp8, any strides; fastest as the transpose of ``[batch, n, k]``.
    A_scale, B_scale : Tensor ``[1]``
        float32 factors that undo the quantisation.
    dtype : torch.dtype, optional
        Of the output: bfloat16, float16 or float32; by default that of `out`, else bfloat16.
    out : Tensor ``[batch, m, n]``, optional
        Written in place and returned. Rows must be contiguous.
    backend : str
        "auto", or a name of ``BMM_FP8.backend_names``.

    Returns
    -------
    Tensor ``[batch, m, n]``

    Raises
    ------
    ArgumentError, UnsupportedError
        As `mm_fp8`.

    Examples
    --------
    >>> import torch
    >>> from warploom.gemm import bmm_fp8
    >>> a = torch.ones(2, 1, 16).to(torch.float8_e4m3fn)
    >>> bmm_fp8(a, a.mT, torch.tensor(0.5), torch.tensor(1.0), torch.float32).tolist()
    [[[8.0]], [[8.0]]]
    """
    A, B, A_scale, B_scale, out = as_tensors("bmm_fp8", A=A, B=B, A_scale=A_scale, B_scale=B_scale, out=out)
    out = _check_bmm(A, B, A_scale, B_scale, out, dtype).tensor(out, like=A)
    _bmm_fp8(out, A, B, A_scale.reshape(1, 1), B_scale.reshape(1, 1), backend)
    return out


@once_per_layout
def _check_bmm(A: Any, B: Any, A_scale: Any, B_scale: Any, out: Any, dtype: torch.dtype | str | None) -> Output:
    check = Checker("bmm_fp8")
    check.tensor("A", A, "batch m k", dtype=FP8_DTYPES)
    check.tensor("B", B, "batch k n", dtype=FP8_DTYPES)
    check_scale_rows(check, "A_scale", A_scale, 1)
    check_scale_rows(check, "B_scale", B_scale, 1)
    return check_output(check, out, (check["batch"], check["m"], check["n"]), dtype, torch.bfloat16)


def _bmm_problem(
    out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, a_scale: torch.Tensor, b_scale: torch.Tensor
) -> ScaledProblem:
    (batch, m, k), n = a.shape, b.shape[2]
    return ScaledProblem(
        batch=batch, m=m, n=n, k=k, a_dtype=a.dtype, b_dtype=b.dtype, out_dtype=out.dtype, **ScaledProblem.where(a)
    )


@register_op("bmm_fp8(Tensor(a!) out, Tensor a, Tensor b, Tensor a_scale, Tensor b_scale, str backend) -> ()")
def _bmm_fp8(
    out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, a_scale: torch.Tensor, b_scale: torch.Tensor, backend: str
) -> None:
    BMM_FP8.call(_bmm_problem, backend, (out, a, b, a_scale, b_scale))
