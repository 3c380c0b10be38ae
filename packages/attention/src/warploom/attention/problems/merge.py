"""Requests to merge attention states."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from warploom.core.problem import Problem


@dataclass(frozen=True, kw_only=True)
class MergeProblem(Problem):
    """Outputs over disjoint sets of keys, to be merged by their log-sum-exps. How many there are does not decide."""

    head_dim: int
    input_dtype: torch.dtype
    output_dtype: torch.dtype
    unit_strides: bool  # the last dimension of inputs and output is contiguous
    lse_base: str  # "log2" or "e"
