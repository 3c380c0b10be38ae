"""What decides who computes a segment product (LoRA)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from warploom.core.problem import Problem

__all__ = ["SegmentProblem"]


@dataclass(frozen=True, kw_only=True)
class SegmentProblem(Problem):
    """``out[segment i] = x[segment i, d_in] @ weights[weight_indices[i]].T`` for `batch` segments.

    Attributes
    ----------
    rows : int
        Rows of `x`, the most that all segments may have together.
    column_major : bool
        Weights are stored ``[d_out, d_in]``; else ``[d_in, d_out]``.
    indexed : bool
        Segments choose their weights; else segment i takes weight i.
    """

    rows: int
    batch: int
    num_weights: int
    d_in: int
    d_out: int
    dtype: torch.dtype
    out_dtype: torch.dtype
    column_major: bool
    indexed: bool
