"""Requests to attention, as far as they decide which backend serves them."""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from typing import Any

import torch

from warploom.core.problem import Problem

__all__ = ["MAX_HEAD_DIM", "AttentionProblem"]

MAX_HEAD_DIM = 256


@dataclass(frozen=True, kw_only=True)
class AttentionProblem(Problem):
    """One plan's attention. Numbers that only scale the work (lengths, batch, window, cap) are not part of it.

    Attributes
    ----------
    phase : {"decode", "prefill", "mixed"}
        "decode": the same small number of queries for every request; "mixed": both in one call.
    kv_source : {"paged", "ragged", "contiguous"}
        Where keys and values lie: pages named by a table, rows end to end, or the rows of one request.
    dtype_q, dtype_kv, dtype_o : torch.dtype
        Queries, keys and values, output.
    num_qo_heads, num_kv_heads, head_dim_qk, head_dim_vo : int
        Any group size; head dims are multiples of 8 up to 256.
    page_size : int
        Entries of a page, 0 unless paged.
    kv_layout : {"NHD", "HND"}
        Order of the dimensions of keys and values in memory.
    causal, sliding_window, soft_cap, sinks : bool
        Which of these variants are on.
    mask : {"none", "dense", "packed"}
        The custom mask, as booleans or as bits.
    pos_encoding : {"NONE", "ROPE_LLAMA", "ALIBI"}
        Positions applied on the fly.
    variant : str
        Name of the user's own variant, or "".
    deterministic : bool
        A request's result must not depend on the batch around it.
    cuda_graph : bool
        `run` will be captured, so it must read lengths on the device.
    few_rows : bool
        No request has more rows (queries times `group_size`) than a tensor core's product, 16.
    sm_count : int
        Multiprocessors of the GPU, which bound the workspace.
    """

    phase: str
    kv_source: str
    dtype_q: torch.dtype
    dtype_kv: torch.dtype
    dtype_o: torch.dtype
    num_qo_heads: int
    num_kv_heads: int
    head_dim_qk: int
    head_dim_vo: int
    page_size: int = 0
    kv_layout: str = "NHD"
    causal: bool = False
    sliding_window: bool = False
    soft_cap: bool = False
    mask: str = "none"
    pos_encoding: str = "NONE"
    sinks: bool = False
    variant: str = ""
    deterministic: bool = False
    cuda_graph: bool = False
    few_rows: bool = False
    sm_count: int = 0

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        """Of the fields, once: plans look the same problem up at every step."""
        return hash(tuple(getattr(self, field.name) for field in fields(self)))

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone: another process hashes strings differently."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def group_size(self) -> int:
        """Query heads that share one key-value head."""
        return self.num_qo_heads // self.num_kv_heads

    @property
    def has_other_variants(self) -> bool:
        """Others than causal masks, windows and soft caps."""
        return bool(self.variant) or self.mask != "none" or self.sinks or self.pos_encoding != "NONE"
