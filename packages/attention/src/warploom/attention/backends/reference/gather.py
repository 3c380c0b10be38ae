"""Keys and values of requests, taken out of pages into rows."""

from __future__ import annotations

import torch

from warploom.attention.plan import AttentionCall, AttentionPlan

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def gather_pages(cache: torch.Tensor, pages: torch.Tensor) -> torch.Tensor:
    """Rows `[len(pages) * page_size, num_kv_heads, d]` of a cache `[pages, page_size, num_kv_heads, d]` of any strides."""
    # By bit pattern, since torch indexes no fp8.
    rows = cache.view(_BITS[cache.dtype.itemsize]).index_select(0, pages).view(cache.dtype)
    return rows.flatten(0, 1)


def request_keys_values(plan: AttentionPlan, call: AttentionCall, request: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of one request, `[kv_len, num_kv_heads, d]`, in their own dtype."""
    tables, host = plan.tables, plan.tables.on_host()
    start, length = host.kv_indptr[request], host.kv_lens[request]
    if tables.page_indices is None:
        return call.k[start : start + length], call.v[start : start + length]
    pages = tables.page_indices[start : start - (-length // tables.page_size)]
    return gather_pages(call.k, pages)[:length], gather_pages(call.v, pages)[:length]
