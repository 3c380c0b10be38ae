"""Grouped products: consecutive rows belong to groups, each with its own matrix (the experts of a mixture).

Group g has the rows ``m_indptr[g]`` to ``m_indptr[g + 1]`` of `a`, or of the rows that indices name. The offsets live on the
device and start at 0; groups may be empty, and rows after the last group hold no defined value in the output.
"""

from __future__ import annotations

from typing import Any

import torch

from warploom.core.backends import Operator
from warploom.core.calls import once_per_layout
from warploom.core.errors import ArgumentError
from warploom.core.tensors import Checker, as_tensors
from warploom.core.torch_ops import register_op
from warploom.gemm.backends.cublaslt.grouped import CublasltGrouped, CublasltGroupedScaled
from warploom.gemm.backends.hopper.grouped import HopperGrouped, HopperGroupedScaled
from warploom.gemm.backends.reference.grouped import ReferenceGrouped, ReferenceGroupedScaled
from warploom.gemm.formats import FP8_DTYPES, HALF_DTYPES, Output, check_output
from warploom.gemm.offsets import check_group_offsets, check_groups, check_row_indices, rows_of
from warploom.gemm.problems.grouped import GroupedProblem, GroupedScaledProblem
from warploom.gemm.scaled import check_scale_rows

__all__ = ["GROUPED_MM_BF16", "GROUPED_MM_FP8", "grouped_mm_bf16", "grouped_mm_fp8"]

GROUPED_MM_BF16 = Operator(
    "grouped_mm_bf16", family="gemm", backends=(HopperGrouped(), CublasltGrouped(), ReferenceGrouped())
)
GROUPED_MM_FP8 = Operator(
    "grouped_mm_fp8", family="gemm", backends=(HopperGroupedScaled(), CublasltGroupedScaled(), ReferenceGroupedScaled())
)


def grouped_mm_bf16(
    a: Any,
    b: Any,
    m_indptr: Any,
    out: Any = None,
    out_dtype: torch.dtype | str | None = None,
    *,
    row_indices: Any = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Multiply the rows of each group by its matrix: ``out[rows of g] = a[rows of g] @ b[g].T``, summed in float32.

    Parameters
    ----------
    a : Tensor ``[rows, k]``
        bfloat16 or float16; contiguous rows are fastest.
    b : Tensor ``[groups, n, k]``
        Of `a`'s dtype; either matrix dimension contiguous is fastest.
    m_indptr : Tensor ``[groups + 1]``
        int32 or int64 offsets of the groups' rows, on the device.
    out : Tensor ``[rows, n]``, optional
        Written in place and returned. Rows must be contiguous.
    out_dtype : torch.dtype, optional
        bfloat16, float16 or float32; by default that of `out`, else of `a`.
    row_indices : Tensor ``[rows]``, optional
        int32 or int64 on the device: the row of `a` that each row of the output is a product of, such as the token of each of
        a mixture's rows. `a` then has any number of rows.
    backend : str
        "auto", or a name of ``GROUPED_MM_BF16.backend_names``.

    Returns
    -------
    Tensor ``[rows, n]``

    Raises
    ------
    ArgumentError
        A dtype, shape, device or stride is wrong; with the setting ``debug_checks`` also a wrong offset or index.
    UnsupportedError
        The named backend cannot serve this problem; the message is the table of backends.

    Examples
    --------
    >>> import torch
    >>> from warploom.gemm import grouped_mm_bf16
    >>> a = torch.ones(3, 8).bfloat16()
    >>> b = torch.stack([torch.full((2, 8), 1.0), torch.full((2, 8), 2.0)]).bfloat16()
    >>> grouped_mm_bf16(a, b, torch.tensor([0, 1, 3])).tolist()
    [[8.0, 8.0], [16.0, 16.0], [16.0, 16.0]]
    """
    a, b, m_indptr, out, row_indices = as_tensors(
        "grouped_mm_bf16", a=a, b=b, m_indptr=m_indptr, out=out, row_indices=row_indices
    )
    output = _check_bf16(a, b, m_indptr, out, out_dtype, row_indices)
    if out is None:
        return _grouped_mm_bf16(a, b, m_indptr, row_indices, output.dtype, backend)
    _grouped_mm_bf16_out(out, a, b, m_indptr, row_indices, backend)
    return out


def grouped_mm_fp8(
    a: Any,
    b: Any,
    m_indptr: Any,
    alpha: Any = None,
    out: Any = None,
    out_dtype: torch.dtype | str | None = None,
    *,
    a_scale: Any = None,
    b_scale: Any = None,
    row_indices: Any = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Multiply the fp8 rows of each group by its fp8 matrix, with scales of tensors or rows.

    ``out[rows of g] = alpha * (a * a_scale)[rows of g] @ (b[g] * b_scale[g]).T``, summed in float32.

    Parameters
    ----------
    a : Tensor ``[rows, k]``
        float8_e4m3fn or float8_e5m2; contiguous rows are fastest.
    b : Tensor ``[groups, n, k]``
        fp8; contiguous rows are fastest.
    m_indptr : Tensor ``[groups + 1]``
        int32 or int64 offsets of the groups' rows, on the device.
    alpha : Tensor ``[1]``, optional
        float32 factor of everything.
    out : Tensor ``[rows, n]``, optional
        Written in place and returned. Rows must be contiguous.
    out_dtype : torch.dtype, optional
        bfloat16, float16 or float32; by default that of `out`, else bfloat16.
    a_scale : Tensor ``[1]``, ``[rows]`` or ``[rows, 1]``, optional
        float32: for all of `a`, or for each of its rows.
    b_scale : Tensor ``[1]``, ``[groups]`` or ``[groups, n]``, optional
        float32: for all of `b`, for each group, or for each row of each group.
    row_indices : Tensor ``[rows]``, optional
        int32 or int64 on the device: the row of `a` that each row of the output is a product of, such as the token of each of
        a mixture's rows. `a` then has any number of rows, and `a_scale` numbers for them.
    backend : str
        "auto", or a name of ``GROUPED_MM_FP8.backend_names``.

    Returns
    -------
    Tensor ``[rows, n]``

    Raises
    ------
    ArgumentError
        A dtype, shape, device or stride is wrong; with the setting ``debug_checks`` also a wrong offset or index.
    UnsupportedError
        The named backend cannot serve this problem; the message is the table of backends.

    Examples
    --------
    >>> import torch
    >>> from warploom.gemm import grouped_mm_fp8
    >>> a, b = torch.ones(3, 16).to(torch.float8_e4m3fn), torch.ones(2, 1, 16).to(torch.float8_e4m3fn)
    >>> grouped_mm_fp8(a, b, torch.tensor([0, 1, 3]), b_scale=torch.tensor([1.0, 0.5])).tolist()
    [[16.0], [8.0], [8.0]]
    """
    a, b, m_indptr, alpha, out, a_scale, b_scale, row_indices = as_tensors(
        "grouped_mm_fp8",
        a=a,
        b=b,
        m_indptr=m_indptr,
        alpha=alpha,
        out=out,
        a_scale=a_scale,
        b_scale=b_scale,
        row_indices=row_indices,
    )
    output = _check_fp8(a, b, m_indptr, alpha, a_scale, b_scale, out, out_dtype, row_indices)
    scales = _scale_of_a(a, a_scale, alpha), _scale_of_b(b, b_scale)
    if out is None:
        return _grouped_mm_fp8(a, b, *scales, m_indptr, row_indices, output.dtype, backend)
    _grouped_mm_fp8_out(out, a, b, *scales, m_indptr, row_indices, backend)
    return out


@once_per_layout
def _check_bf16(
    a: Any, b: Any, m_indptr: Any, out: Any, out_dtype: torch.dtype | str | None, row_indices: Any
) -> Output:
    check = Checker("grouped_mm_bf16")
    a = check.tensor("a", a, "tokens k", dtype=HALF_DTYPES)
    check.tensor("b", b, "groups n k", dtype=a.dtype)
    check_group_offsets(check, m_indptr)
    rows = check_row_indices(check, row_indices, check["tokens"])
    return check_output(check, out, (rows, check["n"]), out_dtype, a.dtype)


@once_per_layout
def _check_fp8(
    a: Any,
    b: Any,
    m_indptr: Any,
    alpha: Any,
    a_scale: Any,
    b_scale: Any,
    out: Any,
    out_dtype: torch.dtype | str | None,
    row_indices: Any,
) -> Output:
    check = Checker("grouped_mm_fp8")
    check.tensor("a", a, "tokens k", dtype=FP8_DTYPES)
    check.tensor("b", b, "groups n k", dtype=FP8_DTYPES)
    check_group_offsets(check, m_indptr)
    if a_scale is not None:
        check_scale_rows(check, "a_scale", a_scale, check["tokens"])
    if alpha is not None:
        check_scale_rows(check, "alpha", alpha, 1)
    if b_scale is not None:
        shape = tuple(check.tensor("b_scale", b_scale, "*b_scale", dtype=torch.float32).shape)
        groups, n = check["groups"], check["n"]
        if check["b_scale"] != 1 and shape not in ((groups,), (groups, n)):
            expected = f"one float32, or of shape ({groups},) or ({groups}, {n})"
            raise ArgumentError.of(check.op, "b_scale", expected, f"shape {shape}")
    rows = check_row_indices(check, row_indices, check["tokens"])
    return check_output(check, out, (rows, check["n"]), out_dtype, torch.bfloat16)


def _scale_of_a(a: torch.Tensor, a_scale: torch.Tensor | None, alpha: torch.Tensor | None) -> torch.Tensor:
    """``[tokens]``, with alpha in it; expanded from fewer numbers where it can be."""
    scale = a.new_ones(1, dtype=torch.float32) if a_scale is None else a_scale.reshape(-1)
    return (scale if alpha is None else scale * alpha.reshape(1)).expand(a.shape[0])


def _scale_of_b(b: torch.Tensor, b_scale: torch.Tensor | None) -> torch.Tensor:
    """``[groups, n]``, expanded from fewer numbers where it can be."""
    scale = b.new_ones(1, dtype=torch.float32) if b_scale is None else b_scale
    if scale.numel() == 1:
        scale = scale.reshape(1, 1)
    return (scale if scale.dim() == 2 else scale.unsqueeze(1)).expand(b.shape[:2])


def _problem(
    out: torch.Tensor | None,
    a: torch.Tensor,
    b: torch.Tensor,
    m_indptr: torch.Tensor,
    row_indices: torch.Tensor | None,
    out_dtype: torch.dtype,
) -> GroupedProblem:
    groups, n, k = b.shape
    return GroupedProblem(
        rows=rows_of(a, row_indices),
        n=n,
        k=k,
        groups=groups,
        gathers=row_indices is not None,
        dtype=a.dtype,
        out_dtype=out_dtype,
        **GroupedProblem.where(a),
    )


def _scaled_problem(
    out: torch.Tensor | None,
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    m_indptr: torch.Tensor,
    row_indices: torch.Tensor | None,
    out_dtype: torch.dtype,
) -> GroupedScaledProblem:
    groups, n, k = b.shape
    return GroupedScaledProblem(
        rows=rows_of(a, row_indices),
        n=n,
        k=k,
        groups=groups,
        gathers=row_indices is not None,
        a_dtype=a.dtype,
        b_dtype=b.dtype,
        out_dtype=out_dtype,
        **GroupedScaledProblem.where(a),
    )


def _run_grouped(
    out: torch.Tensor | None,
    a: torch.Tensor,
    b: torch.Tensor,
    m_indptr: torch.Tensor,
    row_indices: torch.Tensor | None,
    out_dtype: torch.dtype,
    backend: str,
) -> torch.Tensor:
    check_groups("grouped_mm_bf16", a, m_indptr, row_indices)
    return GROUPED_MM_BF16.call(_problem, backend, (out, a, b, m_indptr, row_indices), (out_dtype,))


def _run_grouped_scaled(
    out: torch.Tensor | None,
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    m_indptr: torch.Tensor,
    row_indices: torch.Tensor | None,
    out_dtype: torch.dtype,
    backend: str,
) -> torch.Tensor:
    check_groups("grouped_mm_fp8", a, m_indptr, row_indices)
    tensors = out, a, b, a_scale, b_scale, m_indptr, row_indices
    return GROUPED_MM_FP8.call(_scaled_problem, backend, tensors, (out_dtype,))


def _fake(a: torch.Tensor, b: torch.Tensor, *rest: Any) -> torch.Tensor:
    *_, row_indices, out_dtype, _backend = rest
    return a.new_empty((rows_of(a, row_indices), b.shape[1]), dtype=out_dtype)


# torch's grouped products allocate their results, so each operator exists twice: one returns what the backend made, one
# writes into the caller's buffer.
@register_op(
    "grouped_mm_bf16(Tensor a, Tensor b, Tensor m_indptr, Tensor? row_indices, ScalarType out_dtype, str backend)"
    " -> Tensor",
    fake=_fake,
)
def _grouped_mm_bf16(
    a: torch.Tensor,
    b: torch.Tensor,
    m_indptr: torch.Tensor,
    row_indices: torch.Tensor | None,
    out_dtype: torch.dtype,
    backend: str,
) -> torch.Tensor:
    return _run_grouped(None, a, b, m_indptr, row_indices, out_dtype, backend)


@register_op(
    "grouped_mm_bf16_out(Tensor(a!) out, Tensor a, Tensor b, Tensor m_indptr, Tensor? row_indices, str backend) -> ()"
)
def _grouped_mm_bf16_out(
    out: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    m_indptr: torch.Tensor,
    row_indices: torch.Tensor | None,
    backend: str,
) -> None:
    _run_grouped(out, a, b, m_indptr, row_indices, out.dtype, backend)


@register_op(
    "grouped_mm_fp8(Tensor a, Tensor b, Tensor a_scale, Tensor b_scale, Tensor m_indptr, Tensor? row_indices,"
    " ScalarType out_dtype, str backend) -> Tensor",
    fake=_fake,
)
def _grouped_mm_fp8(
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    m_indptr: torch.Tensor,
    row_indices: torch.Tensor | None,
    out_dtype: torch.dtype,
    backend: str,
) -> torch.Tensor:
    return _run_grouped_scaled(None, a, b, a_scale, b_scale, m_indptr, row_indices, out_dtype, backend)


@register_op(
    "grouped_mm_fp8_out(Tensor(a!) out, Tensor a, Tensor b, Tensor a_scale, Tensor b_scale, Tensor m_indptr,"
    " Tensor? row_indices, str backend) -> ()"
)
def _grouped_mm_fp8_out(
    out: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    m_indptr: torch.Tensor,
    row_indices: torch.Tensor | None,
    backend: str,
) -> None:
    _run_grouped_scaled(out, a, b, a_scale, b_scale, m_indptr, row_indices, out.dtype, backend)
