"""Requests to rotate new queries and keys, and to write keys and values to the paged cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from warploom.attention.problems.page import AppendProblem
from warploom.attention.problems.rope import RopeProblem
from warploom.core.problem import Problem


@dataclass(frozen=True, kw_only=True)
class RopeAppendProblem(Problem):
    """New tokens. Their number and that of query heads scale the work and do not decide."""

    dtype: torch.dtype
    cache_dtype: torch.dtype
    num_kv_heads: int
    head_dim: int
    value_dim: int
    rotary_dim: int
    interleave: bool
    unit_strides: bool = True  # of the last dimensions

    @property
    def rope(self) -> RopeProblem:
        """The rotation alone."""
        return RopeProblem(
            dtype=self.dtype,
            head_dim=self.head_dim,
            rotary_dim=self.rotary_dim,
            interleave=self.interleave,
            unit_strides=self.unit_strides,
            **self._device,
        )

    @property
    def append(self) -> AppendProblem:
        """The append alone; strides are the rotation's matter."""
        return AppendProblem(
            num_kv_heads=self.num_kv_heads,
            key_dim=self.head_dim,
            value_dim=self.value_dim,
            input_dtype=self.dtype,
            cache_dtype=self.cache_dtype,
            unit_strides=True,
            **self._device,
        )

    @property
    def _device(self) -> dict[str, Any]:
        return {"device_type": self.device_type, "arch": self.arch, "device_name": self.device_name}
