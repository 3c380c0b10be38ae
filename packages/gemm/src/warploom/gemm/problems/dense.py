"""What decides who computes a bf16 or fp16 product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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

    batch: int = 1
    m: int
    n: int
    k: int
    dtype: torch.dtype
    out_dtype: torch.dtype
    has_bias: bool = False
    activation: str = ""

    def tuning_features(self) -> dict[str, Any]:
        """What a measurement depends on."""
        return {
            name: value for name, value in super().tuning_features().items() if name not in ("has_bias", "activation")
        }
