"""Requests to the operators of the paged cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from warploom.core.problem import Problem


@dataclass(frozen=True, kw_only=True)
class AppendProblem(Problem):
    """New rows for a paged cache. Sizes that only scale the work (tokens, pages) do not decide and are left out."""

    num_kv_heads: int
    key_dim: int
    value_dim: int
    input_dtype: torch.dtype
    cache_dtype: torch.dtype
    unit_strides: bool  # the last dimension of rows and caches is contiguous

    @property
    def converts(self) -> bool:
        return self.input_dtype != self.cache_dtype


@dataclass(frozen=True, kw_only=True)
class PageTableProblem(Problem):
    """Arithmetic on page tables: int32 vectors of the batch."""
