"""What decides who computes a bf16 or fp16 product."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from warploom.core.problem import Problem

__all__ = ["DenseProblem"]


@dataclass(frozen=True, kw_only=True)
class DenseProblem(Problem):
    """``out[m, n] = a[m, k] @ b[k, n] + bias[n]``, or `batch` of them.

    Attributes
    ----------
    batch : int
        1 for `mm_bf16`.
    dtype, out_dtype : torch.dtype
        Of both operands, and of the output.
    activation : str
        Of `warploom.gemm.formats.ACTIVATIONS`, or "".
    """

    untuned = frozenset(("has_bias", "activation"))

    batch: int = 1
    m: int
    n: int
    k: int
    dtype: torch.dtype
    out_dtype: torch.dtype
    has_bias: bool = False
    activation: str = ""
