"""Grouped fp8 products with block scales: rows in consecutive groups, each with its own matrix.

The groups are those of `warploom.gemm.grouped`.
"""

from __future__ import annotations

from typing import Any

import torch

from warploom.core.backends import Operator
from warploom.core.calls import once_per_layout
from warploom.core.tensors import Checker, as_tensors
from warploom.core.torch_ops import register_op
from warploom.gemm.backends.hopper.grouped_groupwise import HopperGroupedGroupwise
from warploom.gemm.backends.reference.grouped_groupwise import ReferenceGroupedGroupwise
from warploom.gemm.formats import FP8_DTYPES, Output, check_output
from warploom.gemm.offsets import check_group_offsets, check_groups, check_row_indices, rows_of
from warploom.gemm.problems.grouped_groupwise import GroupedGroupwiseProblem
from warploom.gemm.scales import Granularity, check_block_scales, layout_of, logical_scale

__all__ = ["GROUP_GEMM_FP8_NT_GROUPWISE", "group_gemm_fp8_nt_groupwise"]

GROUP_GEMM_FP8_NT_GROUPWISE = Operator(
    "group_gemm_fp8_nt_groupwise", family="gemm", backends=(HopperGroupedGroupwise(), ReferenceGroupedGroupwise())
)


def group_gemm_fp8_nt_groupwise(
    a: Any,
    b: Any,
    a_scale: Any,
    b_scale: Any,
    m_indptr: Any,
    scale_granularity_mnk: Granularity = (1, 128, 128),
    scale_major_mode: str | None = "MN",
    out: Any = None,
    out_dtype: torch.dtype | str | None = None,
    *,
    row_indices: Any = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Multiply the fp8 rows of each group by its fp8 matrix, with block scales.

    The product of each group is that of `gemm_fp8_nt_groupwise`.

    Parameters
    ----------
    a : Tensor ``[rows, k]``
        float8_e4m3fn or float8_e5m2; contiguous rows are fastest.
    b : Tensor ``[groups, n, k]``
        fp8; contiguous rows are fastest.
    a_scale : Tensor ``[ceil(k / gk), ceil(rows / gm)]``
        float32; blocks of rows are counted over all groups. ``[ceil(rows / gm), ceil(k / gk)]`` with "K" or None.
    b_scale : Tensor ``[groups, ceil(k / gk), ceil(n / gn)]``
        float32; ``[groups, ceil(n / gn), ceil(k / gk)]`` with "K" or None.
    m_indptr : Tensor ``[groups + 1]``
        int32 or int64 offsets of the groups' rows, on the device. Unlike FlashInfer's they need no alignment.
    scale_granularity_mnk : tuple of int
        (gm, gn, gk): rows of `a`, rows of `b` and columns of both that share a scale.
    scale_major_mode : {"MN", "K", None}
        The shape of both scales. None takes the shapes of "K" with any strides, such as the column-major scales of
        `per_token_group_quant_fp8`.
    out : Tensor ``[rows, n]``, optional
        Written in place and returned. Rows must be contiguous.
    out_dtype : torch.dtype, optional
        bfloat16, float16 or float32; by default that of `out`, else bfloat16.
    row_indices : Tensor ``[rows]``, optional
        int32 or int64 on the device: the row of `a` that each row of the output is a product of, such as the token of each of
        a mixture's rows. `a` then has any number of rows, `a_scale` numbers for them, and gm is 1.
    backend : str
        "auto", or a name of ``GROUP_GEMM_FP8_NT_GROUPWISE.backend_names``.

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
    >>> from warploom.gemm import group_gemm_fp8_nt_groupwise
    >>> a, b = torch.ones(3, 128).to(torch.float8_e4m3fn), torch.ones(2, 1, 128).to(torch.float8_e4m3fn)
    >>> a_scale, b_scale = torch.ones(1, 3), torch.tensor([1.0, 0.5]).view(2, 1, 1)
    >>> group_gemm_fp8_nt_groupwise(a, b, a_scale, b_scale, torch.tensor([0, 1, 3])).tolist()
    [[128.0], [64.0], [64.0]]
    """
    a, b, a_scale, b_scale, m_indptr, out, row_indices = as_tensors(
        "group_gemm_fp8_nt_groupwise",
        a=a,
        b=b,
        a_scale=a_scale,
        b_scale=b_scale,
        m_indptr=m_indptr,
        out=out,
        row_indices=row_indices,
    )
    output, granularity = _check(
        a, b, a_scale, b_scale, m_indptr, scale_major_mode, scale_granularity_mnk, out, out_dtype, row_indices
    )
    out = output.tensor(out, like=a)
    scales = logical_scale(a_scale, scale_major_mode), logical_scale(b_scale, scale_major_mode)
    _group_gemm_fp8_nt_groupwise(out, a, b, *scales, m_indptr, row_indices, list(granularity), backend)
    return out


@once_per_layout
def _check(
    a: Any,
    b: Any,
    a_scale: Any,
    b_scale: Any,
    m_indptr: Any,
    mode: str | None,
    granularity: Any,
    out: Any,
    out_dtype: torch.dtype | str | None,
    row_indices: Any,
) -> tuple[Output, Granularity]:
    check = Checker("group_gemm_fp8_nt_groupwise")
    check.tensor("a", a, "tokens k", dtype=FP8_DTYPES)
    check.tensor("b", b, "groups n k", dtype=FP8_DTYPES)
    tokens, lead = check["tokens"], (check["groups"],)
    granularity = check_block_scales(check, a_scale, b_scale, granularity, mode, rows=tokens, b_lead=lead)
    check_group_offsets(check, m_indptr)
    rows = check_row_indices(check, row_indices, tokens)
    has_own_scales = row_indices is None or granularity[0] == 1
    check.require(has_own_scales, "scale_granularity_mnk", "(1, gn, gk) with `row_indices`", granularity)
    return check_output(check, out, (rows, check["n"]), out_dtype, torch.bfloat16), granularity


def _problem(
    out: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    m_indptr: torch.Tensor,
    row_indices: torch.Tensor | None,
    granularity: Granularity,
) -> GroupedGroupwiseProblem:
    groups, n, k = b.shape
    return GroupedGroupwiseProblem(
        rows=rows_of(a, row_indices),
        n=n,
        k=k,
        groups=groups,
        gathers=row_indices is not None,
        a_dtype=a.dtype,
        b_dtype=b.dtype,
        out_dtype=out.dtype,
        granularity=granularity,
        a_scale_layout=layout_of(a_scale),
        b_scale_layout=layout_of(b_scale),
        **GroupedGroupwiseProblem.where(a),
    )


@register_op(
    "group_gemm_fp8_nt_groupwise(Tensor(a!) out, Tensor a, Tensor b, Tensor a_scale, Tensor b_scale, Tensor m_indptr,"
    " Tensor? row_indices, int[] granularity, str backend) -> ()"
)
def _group_gemm_fp8_nt_groupwise(
    out: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    m_indptr: torch.Tensor,
    row_indices: torch.Tensor | None,
    granularity: list[int],
    backend: str,
) -> None:
    check_groups("group_gemm_fp8_nt_groupwise", a, m_indptr, row_indices)
    tensors = out, a, b, a_scale, b_scale, m_indptr, row_indices
    GROUP_GEMM_FP8_NT_GROUPWISE.call(_problem, backend, tensors, (tuple(granularity),))
