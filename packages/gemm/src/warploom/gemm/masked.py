"""Batched fp8 products of which only the first rows of each matrix count: the decode form of a mixture of experts."""

from __future__ import annotations

from typing import Any

import torch

from warploom.core.backends import Operator
from warploom.core.calls import once_per_layout
from warploom.core.tensors import Checker, as_tensors
from warploom.core.torch_ops import register_op
from warploom.gemm.backends.hopper.masked import HopperMaskedGroupwise
from warploom.gemm.backends.reference.masked import ReferenceMaskedGroupwise
from warploom.gemm.formats import FP8_DTYPES, Output, check_output
from warploom.gemm.offsets import INDEX_DTYPES, check_indices
from warploom.gemm.problems.masked import MaskedGroupwiseProblem
from warploom.gemm.scales import Granularity, check_block_scales, layout_of, logical_scale

__all__ = ["BATCH_GEMM_FP8_NT_GROUPWISE_MASKED", "batch_gemm_fp8_nt_groupwise_masked"]

BATCH_GEMM_FP8_NT_GROUPWISE_MASKED = Operator(
    "batch_gemm_fp8_nt_groupwise_masked", family="gemm", backends=(HopperMaskedGroupwise(), ReferenceMaskedGroupwise())
)


def batch_gemm_fp8_nt_groupwise_masked(
    a: Any,
    b: Any,
    a_scale: Any,
    b_scale: Any,
    masked_m: Any,
    expected_m: int,
    scale_granularity_mnk: Granularity = (1, 128, 128),
    out: Any = None,
    out_dtype: torch.dtype | str | None = None,
    *,
    scale_major_mode: str | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Multiply the first ``masked_m[g]`` rows of each group: ``out[g] = (a[g] * a_scale[g]) @ (b[g] * b_scale[g]).T``.

    The shapes do not depend on how many rows each group has, so that a CUDA graph can be replayed after `masked_m`
    changed. FlashInfer's ``batch_deepgemm_fp8_nt_groupwise``.

    Parameters
    ----------
    a : Tensor ``[groups, max_m, k]``
        float8_e4m3fn or float8_e5m2; contiguous rows are fastest.
    b : Tensor ``[groups, n, k]``
        fp8; contiguous rows are fastest.
    a_scale : Tensor ``[groups, ceil(max_m / gm), ceil(k / gk)]``
        float32, any strides; ``[groups, ceil(k / gk), ceil(max_m / gm)]`` with ``scale_major_mode="MN"``.
    b_scale : Tensor ``[groups, ceil(n / gn), ceil(k / gk)]``
        float32, and transposed likewise.
    masked_m : Tensor ``[groups]``
        int32 or int64 on the device: rows of each group that count, 0 to max_m.
    expected_m : int
        About how many rows a group has; chooses tiles, never results.
    scale_granularity_mnk : tuple of int
        (gm, gn, gk): rows of `a`, rows of `b` and columns of both that share a scale.
    out : Tensor ``[groups, max_m, n]``, optional
        Written in place and returned. Rows must be contiguous. Rows from ``masked_m[g]`` on hold no defined value.
    out_dtype : torch.dtype, optional
        bfloat16, float16 or float32; by default that of `out`, else bfloat16.
    scale_major_mode : {None, "MN", "K"}
        The shape of both scales, as in `gemm_fp8_nt_groupwise`.
    backend : str
        "auto", or a name of ``BATCH_GEMM_FP8_NT_GROUPWISE_MASKED.backend_names``.

    Returns
    -------
    Tensor ``[groups, max_m, n]``

    Raises
    ------
    ArgumentError
        A dtype, shape, device or stride is wrong; with the setting ``debug_checks`` also a value of `masked_m`.
    UnsupportedError
        The named backend cannot serve this problem; the message is the table of backends.

    Examples
    --------
    >>> import torch
    >>> from warploom.gemm import batch_gemm_fp8_nt_groupwise_masked
    >>> a = torch.ones(2, 4, 128).to(torch.float8_e4m3fn)
    >>> scale = torch.ones(2, 4, 1), torch.ones(2, 1, 1)
    >>> out = batch_gemm_fp8_nt_groupwise_masked(a, a[:, :1], *scale, torch.tensor([1, 3]), expected_m=2)
    >>> out[0, :1].tolist(), out[1, :3].tolist()
    ([[128.0]], [[128.0], [128.0], [128.0]])
    """
    a, b, a_scale, b_scale, masked_m, out = as_tensors(
        "batch_gemm_fp8_nt_groupwise_masked", a=a, b=b, a_scale=a_scale, b_scale=b_scale, masked_m=masked_m, out=out
    )
    output, granularity = _check(
        a, b, a_scale, b_scale, masked_m, expected_m, scale_major_mode, scale_granularity_mnk, out, out_dtype
    )
    out = output.tensor(out, like=a)
    scales = logical_scale(a_scale, scale_major_mode), logical_scale(b_scale, scale_major_mode)
    _batch_gemm(out, a, b, *scales, masked_m, expected_m, list(granularity), backend)
    return out


@once_per_layout
def _check(
    a: Any,
    b: Any,
    a_scale: Any,
    b_scale: Any,
    masked_m: Any,
    expected_m: int,
    mode: str | None,
    granularity: Any,
    out: Any,
    out_dtype: torch.dtype | str | None,
) -> tuple[Output, Granularity]:
    check = Checker("batch_gemm_fp8_nt_groupwise_masked")
    check.tensor("a", a, "groups max_m k", dtype=FP8_DTYPES)
    check.tensor("b", b, "groups n k", dtype=FP8_DTYPES)
    groups, max_m, n = check["groups"], check["max_m"], check["n"]
    granularity = check_block_scales(
        check, a_scale, b_scale, granularity, mode, rows=max_m, a_lead=(groups,), b_lead=(groups,)
    )
    check.tensor("masked_m", masked_m, "groups", dtype=INDEX_DTYPES)
    check.require(expected_m >= 0, "expected_m", "at least 0", expected_m)
    return check_output(check, out, (groups, max_m, n), out_dtype, torch.bfloat16), granularity


def _problem(
    out: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    masked_m: torch.Tensor,
    expected_m: int,
    granularity: Granularity,
) -> MaskedGroupwiseProblem:
    groups, max_m, k = a.shape
    return MaskedGroupwiseProblem(
        groups=groups,
        max_m=max_m,
        n=b.shape[1],
        k=k,
        expected_m=expected_m,
        a_dtype=a.dtype,
        b_dtype=b.dtype,
        out_dtype=out.dtype,
        granularity=granularity,
        a_scale_layout=layout_of(a_scale),
        b_scale_layout=layout_of(b_scale),
        **MaskedGroupwiseProblem.where(a),
    )


@register_op(
    "batch_gemm_fp8_nt_groupwise_masked(Tensor(a!) out, Tensor a, Tensor b, Tensor a_scale, Tensor b_scale,"
    " Tensor masked_m, int expected_m, int[] granularity, str backend) -> ()"
)
def _batch_gemm(
    out: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    masked_m: torch.Tensor,
    expected_m: int,
    granularity: list[int],
    backend: str,
) -> None:
    check_indices("batch_gemm_fp8_nt_groupwise_masked", "masked_m", masked_m, a.shape[1] + 1)
    tensors = out, a, b, a_scale, b_scale, masked_m
    BATCH_GEMM_FP8_NT_GROUPWISE_MASKED.call(_problem, backend, tensors, (expected_m, tuple(granularity)))
