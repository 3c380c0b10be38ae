"""What decides who computes an fp8 product with scales of whole tensors or rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from warploom.core.problem import Problem

__all__ = ["ScaledProblem"]


@dataclass(frozen=True, kw_only=True)
class ScaledProblem(Problem):
    """``out[m, n] = (a[m, k] * a_scale) @ (b[k, n] * b_scale) + bias[n]``, or `batch` of them.

    Attributes
    ----------
    batch : int
        1 for `mm_fp8`.
    a_scaling, b_scaling : str
        "tensor" for one scale, "row" for one per row of `a` and per column of `b`.
    activation : str
        Of `warploom.gemm.formats.ACTIVATIONS`, or "".
    """

    untuned = frozenset(("has_bias", "activation"))

    batch: int = 1
    m: int
    n: int
    k: int
    a_dtype: torch.dtype
    b_dtype: torch.dtype
    out_dtype: torch.dtype
    a_scaling: str = "tensor"
    b_scaling: str = "tensor"
    has_bias: bool = False
    activation: str = ""

    @property
    def by_row(self) -> bool:
        return "row" in (self.a_scaling, self.b_scaling)
