"""Products of bf16 or fp16 matrices, one or a batch."""

from __future__ import annotations

from typing import Any

import torch

from warploom.core.backends import Operator
from warploom.core.calls import once_per_layout
from warploom.core.tensors import Checker, as_tensors
from warploom.core.torch_ops import register_op
from warploom.gemm.backends.cublaslt.dense import CublasltBmm, CublasltMm
from warploom.gemm.backends.hopper.dense import HopperDense
from warploom.gemm.backends.reference.dense import ReferenceDense
from warploom.gemm.formats import FLOAT_DTYPES, HALF_DTYPES, OUT_DTYPES, Output, check_activation, check_output
from warploom.gemm.problems.dense import DenseProblem

__all__ = ["BMM_BF16", "MM_BF16", "bmm_bf16", "mm_bf16"]

MM_BF16 = Operator("mm_bf16", family="gemm", backends=(CublasltMm(), HopperDense(), ReferenceDense()))
BMM_BF16 = Operator("bmm_bf16", family="gemm", backends=(CublasltBmm(), HopperDense(), ReferenceDense()))


def mm_bf16(
    a: Any,
    b: Any,
    bias: Any = None,
    out: Any = None,
    out_dtype: torch.dtype | str | None = None,
    *,
    activation: str | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Multiply two 16-bit matrices: ``out = activation(a @ b + bias)``, summed in float32.

    Parameters
    ----------
    a : Tensor ``[m, k]``
        bfloat16 or float16, any strides.
    b : Tensor ``[k, n]``
        Of `a`'s dtype, any strides; a weight stored ``[n, k]`` is passed as ``weight.t()``.
    bias : Tensor ``[n]``, optional
        bfloat16, float16 or float32, added to each row before the result is rounded.
    out : Tensor ``[m, n]``, optional
        Written in place and returned. Rows must be contiguous.
    out_dtype : torch.dtype, optional
        bfloat16, float16, float32 or float8_e4m3fn, which saturates; by default that of `out`, else of `a`.
    activation : {None, "relu", "gelu", "silu"}
        Applied to each element before the result is rounded; "gelu" is the exact one.
    backend : str
        "auto", or a name of ``MM_BF16.backend_names``.

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
    >>> from warploom.gemm import mm_bf16
    >>> mm_bf16(torch.ones(2, 8).bfloat16(), torch.ones(8, 3).bfloat16(), bias=torch.tensor([0.0, 1.0, 2.0])).tolist()
    [[8.0, 9.0, 10.0], [8.0, 9.0, 10.0]]
    """
    a, b, bias, out = as_tensors("mm_bf16", a=a, b=b, bias=bias, out=out)
    output, name = _check_mm(a, b, bias, out, out_dtype, activation)
    out = output.tensor(out, like=a)
    _mm_bf16(out, a, b, bias, name, backend)
    return out


@once_per_layout
def _check_mm(
    a: Any, b: Any, bias: Any, out: Any, out_dtype: torch.dtype | str | None, activation: str | None
) -> tuple[Output, str]:
    check = Checker("mm_bf16")
    a = check.tensor("a", a, "m k", dtype=HALF_DTYPES)
    check.tensor("b", b, "k n", dtype=a.dtype)
    check.tensor("bias", bias, "n", dtype=FLOAT_DTYPES, optional=True)
    name = check_activation(check, activation)
    return check_output(check, out, (check["m"], check["n"]), out_dtype, a.dtype, OUT_DTYPES), name


def _mm_problem(
    out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None, activation: str
) -> DenseProblem:
    (m, k), n = a.shape, b.shape[1]
    return DenseProblem(
        m=m,
        n=n,
        k=k,
        dtype=a.dtype,
        out_dtype=out.dtype,
        has_bias=bias is not None,
        activation=activation,
        **DenseProblem.where(a),
    )


@register_op("mm_bf16(Tensor(a!) out, Tensor a, Tensor b, Tensor? bias, str activation, str backend) -> ()")
def _mm_bf16(
    out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None, activation: str, backend: str
) -> None:
    MM_BF16.call(_mm_problem, backend, (out, a, b, bias), (activation,))


def bmm_bf16(
    A: Any,
    B: Any,
    out: Any = None,
    out_dtype: torch.dtype | str | None = None,
    *,
    backend: str = "auto",
) -> torch.Tensor:
    """Multiply batches of 16-bit matrices: ``out[i] = A[i] @ B[i]``, summed in float32.

    Parameters
    ----------
    A : Tensor ``[batch, m, k]``
        bfloat16 or float16, any strides.
    B : Tensor ``[batch, k, n]``
        Of `A`'s dtype, any strides.
    out : Tensor ``[batch, m, n]``, optional
        Written in place and returned. Rows must be contiguous.
    out_dtype : torch.dtype, optional
        bfloat16, float16 or float32; by default that of `out`, else of `A`.
    backend : str
        "auto", or a name of ``BMM_BF16.backend_names``.

    Returns
    -------
    Tensor ``[batch, m, n]``

    Raises
    ------
    ArgumentError, UnsupportedError
        As `mm_bf16`.

    Examples
    --------
    >>> import torch
    >>> from warploom.gemm import bmm_bf16
    >>> bmm_bf16(torch.ones(2, 1, 8).bfloat16(), torch.ones(2, 8, 2).bfloat16()).tolist()
    [[[8.0, 8.0]], [[8.0, 8.0]]]
    """
    A, B, out = as_tensors("bmm_bf16", A=A, B=B, out=out)
    out = _check_bmm(A, B, out, out_dtype).tensor(out, like=A)
    _bmm_bf16(out, A, B, backend)
    return out


@once_per_layout
def _check_bmm(A: Any, B: Any, out: Any, out_dtype: torch.dtype | str | None) -> Output:
    check = Checker("bmm_bf16")
    A = check.tensor("A", A, "batch m k", dtype=HALF_DTYPES)
    check.tensor("B", B, "batch k n", dtype=A.dtype)
    return check_output(check, out, (check["batch"], check["m"], check["n"]), out_dtype, A.dtype)


def _bmm_problem(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> DenseProblem:
    (batch, m, k), n = a.shape, b.shape[2]
    return DenseProblem(batch=batch, m=m, n=n, k=k, dtype=a.dtype, out_dtype=out.dtype, **DenseProblem.where(a))


@register_op("bmm_bf16(Tensor(a!) out, Tensor a, Tensor b, str backend) -> ()")
def _bmm_bf16(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, backend: str) -> None:
    BMM_BF16.call(_bmm_problem, backend, (out, a, b))
