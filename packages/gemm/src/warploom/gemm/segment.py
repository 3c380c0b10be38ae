"""Segment products: requests in one batch, each multiplied by a weight of its own choice (LoRA)."""

from __future__ import annotations

from typing import Any

import torch

from warploom.core.backends import Operator
from warploom.core.calls import once_per_layout
from warploom.core.errors import ArgumentError
from warploom.core.tensors import Checker, as_tensors
from warploom.core.torch_ops import register_op
from warploom.gemm.backends.cublaslt.segment import CublasltSegment
from warploom.gemm.backends.hopper.segment import HopperSegment
from warploom.gemm.backends.reference.segment import ReferenceSegment
from warploom.gemm.formats import FLOAT_DTYPES, Output, check_output
from warploom.gemm.offsets import INDEX_DTYPES, check_indices, check_offsets
from warploom.gemm.problems.segment import SegmentProblem

__all__ = ["SEGMENT_GEMM", "SegmentGEMMWrapper"]

SEGMENT_GEMM = Operator(
    "segment_gemm", family="gemm", backends=(HopperSegment(), CublasltSegment(), ReferenceSegment())
)


class SegmentGEMMWrapper:
    """Multiply ragged segments of rows by weights that each segment chooses, as LoRA adapters need it.

    Parameters
    ----------
    float_workspace_buffer : Tensor, optional
        Taken for FlashInfer's sake: no backend needs one yet, see `workspace_size`.
    backend : str
        "auto", or a name of ``SEGMENT_GEMM.backend_names``.

    Examples
    --------
    >>> import torch
    >>> from warploom.gemm import SegmentGEMMWrapper
    >>> x = torch.ones(3, 8).bfloat16()
    >>> weights = torch.stack([torch.full((2, 8), 1.0), torch.full((2, 8), 2.0)]).bfloat16()
    >>> lengths, indices = torch.tensor([1, 2]), torch.tensor([1, 0])
    >>> SegmentGEMMWrapper().run(x, weights, 2, True, seg_lens=lengths, weight_indices=indices).tolist()
    [[16.0, 16.0], [8.0, 8.0], [8.0, 8.0]]
    """

    def __init__(self, float_workspace_buffer: Any = None, backend: str = "auto") -> None:
        self.reset_workspace_buffer(float_workspace_buffer)
        self._backend = backend

    @staticmethod
    def workspace_size() -> int:
        """Bytes of workspace that `run` uses: none."""
        return 0

    def reset_workspace_buffer(self, float_workspace_buffer: Any) -> None:
        """Replace the workspace.

        Parameters
        ----------
        float_workspace_buffer : Tensor or None
        """
        self._workspace = float_workspace_buffer

    def run(
        self,
        x: Any,
        weights: Any,
        batch_size: int,
        weight_column_major: bool,
        out: Any = None,
        seg_lens: Any = None,
        seg_indptr: Any = None,
        weight_indices: Any = None,
    ) -> torch.Tensor:
        """Compute ``out[segment i] = x[segment i] @ W(weight_indices[i])``, summed in float32.

        Parameters
        ----------
        x : Tensor ``[rows, d_in]``
            bfloat16, float16 or float32: the segments one after the other.
        weights : Tensor ``[num_weights, d_out, d_in]`` or ``[num_weights, d_in, d_out]``
            Of `x`'s dtype. The first shape if `weight_column_major`, else the second.
        batch_size : int
            Number of segments.
        weight_column_major : bool
            How `weights` is stored.
        out : Tensor ``[rows, d_out]``, optional
            bfloat16, float16 or float32; by default a new tensor of `x`'s dtype. Rows after the last segment hold no
            defined value.
        seg_lens : Tensor ``[batch_size]``, optional
            Rows of each segment, 0 included; int32 or int64 on the device.
        seg_indptr : Tensor ``[batch_size + 1]``, optional
            Offsets of the segments instead, starting at 0. One of both must be given; they stay on the device.
        weight_indices : Tensor ``[batch_size]``, optional
            int32 or int64: the weight of each segment. By default segment i takes weight i.

        Returns
        -------
        Tensor ``[rows, d_out]``

        Raises
        ------
        ArgumentError
            A dtype, shape, device or stride is wrong, or not exactly one of `seg_lens` and `seg_indptr` is given; with
            the setting ``debug_checks`` also wrong offsets and indices.
        UnsupportedError
            The named backend cannot serve this problem; the message is the table of backends.
        """
        x, weights, out, seg_lens, seg_indptr, weight_indices = as_tensors(
            "SegmentGEMMWrapper.run",
            x=x,
            weights=weights,
            out=out,
            seg_lens=seg_lens,
            seg_indptr=seg_indptr,
            weight_indices=weight_indices,
        )
        _check(x, weights, batch_size, weight_column_major, out, seg_lens, seg_indptr, weight_indices)
        offsets = seg_indptr if seg_lens is None else _offsets_of(seg_lens)
        weights = weights if weight_column_major else weights.mT
        if out is None:
            return _segment_gemm(x, weights, offsets, weight_indices, weight_column_major, self._backend)
        _segment_gemm_out(out, x, weights, offsets, weight_indices, weight_column_major, self._backend)
        return out

    forward = run


@once_per_layout
def _check(
    x: Any,
    weights: Any,
    batch_size: int,
    column_major: bool,
    out: Any,
    seg_lens: Any,
    seg_indptr: Any,
    weight_indices: Any,
) -> Output:
    check = Checker("SegmentGEMMWrapper.run")
    x = check.tensor("x", x, "rows d_in", dtype=FLOAT_DTYPES)
    dims = "num_weights d_out d_in" if column_major else "num_weights d_in d_out"
    check.tensor("weights", weights, dims, dtype=x.dtype)
    _check_segments(check, seg_lens, seg_indptr, batch_size)
    check.tensor("weight_indices", weight_indices, "batch_size", dtype=INDEX_DTYPES, optional=True)
    if weight_indices is None and check["num_weights"] < batch_size:
        expected = f"at least {batch_size}, one for each segment"
        raise ArgumentError.of(check.op, "weights", expected, check["num_weights"])
    return check_output(check, out, (check["rows"], check["d_out"]), None, x.dtype)


def _check_segments(check: Checker, seg_lens: Any, seg_indptr: Any, batch_size: int) -> None:
    """One of both tells where the segments lie."""
    check.bind("batch_size", batch_size, "batch_size")
    one_given = (seg_lens is None) != (seg_indptr is None)
    check.require(
        one_given, "seg_indptr", "given, or `seg_lens`, but not both", "neither" if seg_lens is None else "both"
    )
    if seg_lens is None:
        check.bind("batch_size+1", batch_size + 1, "batch_size")
        check.tensor("seg_indptr", seg_indptr, "batch_size+1", dtype=INDEX_DTYPES)
    else:
        check.tensor("seg_lens", seg_lens, "batch_size", dtype=INDEX_DTYPES)


def _offsets_of(lengths: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))


def _problem(
    out: torch.Tensor | None,
    x: torch.Tensor,
    weights: torch.Tensor,
    seg_indptr: torch.Tensor,
    weight_indices: torch.Tensor | None,
    column_major: bool,
) -> SegmentProblem:
    (rows, d_in), (num_weights, d_out, _) = x.shape, weights.shape
    return SegmentProblem(
        rows=rows,
        batch=seg_indptr.shape[0] - 1,
        num_weights=num_weights,
        d_in=d_in,
        d_out=d_out,
        dtype=x.dtype,
        out_dtype=x.dtype if out is None else out.dtype,
        column_major=column_major,
        indexed=weight_indices is not None,
        **SegmentProblem.where(x),
    )


def _run_segments(
    out: torch.Tensor | None,
    x: torch.Tensor,
    weights: torch.Tensor,
    seg_indptr: torch.Tensor,
    weight_indices: torch.Tensor | None,
    column_major: bool,
    backend: str,
) -> torch.Tensor:
    check_offsets("SegmentGEMMWrapper.run", "seg_indptr", seg_indptr, x.shape[0])
    check_indices("SegmentGEMMWrapper.run", "weight_indices", weight_indices, weights.shape[0])
    tensors = out, x, weights, seg_indptr, weight_indices
    return SEGMENT_GEMM.call(_problem, backend, tensors, (column_major,))


def _fake_segment_gemm(x: torch.Tensor, weights: torch.Tensor, *args: Any) -> torch.Tensor:
    return x.new_empty((x.shape[0], weights.shape[1]))


@register_op(
    "segment_gemm(Tensor x, Tensor weights, Tensor seg_indptr, Tensor? weight_indices, bool column_major, str backend)"
    " -> Tensor",
    fake=_fake_segment_gemm,
)
def _segment_gemm(
    x: torch.Tensor,
    weights: torch.Tensor,
    seg_indptr: torch.Tensor,
    weight_indices: torch.Tensor | None,
    column_major: bool,
    backend: str,
) -> torch.Tensor:
    return _run_segments(None, x, weights, seg_indptr, weight_indices, column_major, backend)


@register_op(
    "segment_gemm_out(Tensor(a!) out, Tensor x, Tensor weights, Tensor seg_indptr, Tensor? weight_indices,"
    " bool column_major, str backend) -> ()"
)
def _segment_gemm_out(
    out: torch.Tensor,
    x: torch.Tensor,
    weights: torch.Tensor,
    seg_indptr: torch.Tensor,
    weight_indices: torch.Tensor | None,
    column_major: bool,
    backend: str,
) -> None:
    _run_segments(out, x, weights, seg_indptr, weight_indices, column_major, backend)
