"""Paged-cache operators in plain torch. Nothing synchronises: padding rows are redirected, never filtered out."""

from __future__ import annotations

import torch

from warploom.attention.backends.reference.ragged import request_of_row
from warploom.attention.problems.page import AppendProblem, PageTableProblem
from warploom.core.backends import Backend, Support

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class ReferenceAppend(Backend):
    name = "reference"

    def supports(self, problem: AppendProblem) -> Support:
        return Support()

    def run(
        self,
        problem: AppendProblem,
        k_cache: torch.Tensor,  # [pages, page_size, kv_heads, dim], any strides; so is v_cache
        v_cache: torch.Tensor,
        key: torch.Tensor,  # [nnz, kv_heads, dim]
        value: torch.Tensor,
        batch_indices: torch.Tensor,
        positions: torch.Tensor,
        kv_indices: torch.Tensor,
        kv_indptr: torch.Tensor,
    ) -> None:
        if key.shape[0] == 0 or kv_indices.shape[0] == 0 or k_cache.shape[0] == 0:
            return
        page_size = k_cache.shape[1]
        owned = (batch_indices >= 0) & (positions >= 0)
        # A padding row repeats the first real row: two equal writes to one place need no order.
        source = torch.where(owned, torch.arange(key.shape[0], device=key.device), owned.to(torch.uint8).argmax())
        request = torch.where(owned, batch_indices, 0)[source].long()
        position = torch.where(owned, positions, 0)[source].long()
        any_owned = owned.any()
        page = kv_indices[torch.where(any_owned, kv_indptr[request] + position // page_size, 0)].long()
        slot = torch.where(any_owned, page, 0), position % page_size
        for cache, rows in ((k_cache, key), (v_cache, value)):
            _write(cache, slot, _cast(rows, cache.dtype)[source], any_owned)


def _cast(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Round to the cache's dtype; values beyond the range of an fp8 type saturate, NaN stays."""
    if rows.dtype != dtype and dtype.itemsize == 1:
        limit = torch.finfo(dtype).max
        rows = rows.float().clamp(-limit, limit)
    return rows.to(dtype)


def _write(
    cache: torch.Tensor, slot: tuple[torch.Tensor, torch.Tensor], rows: torch.Tensor, any_owned: torch.Tensor
) -> None:
    """Scatter by bit pattern, since torch indexes no fp8; with nothing but padding, put back what is there."""
    bits = _BITS[cache.dtype.itemsize]
    target = cache.view(bits)
    target[slot] = torch.where(any_owned, rows.view(bits), target[slot])


class ReferenceBatchIndicesPositions(Backend):
    name = "reference"

    def supports(self, problem: PageTableProblem) -> Support:
        return Support()

    def run(
        self,
        problem: PageTableProblem,
        batch_indices: torch.Tensor,
        positions: torch.Tensor,
        append_indptr: torch.Tensor,
        seq_lens: torch.Tensor,
    ) -> None:
        request, offset = request_of_row(append_indptr, batch_indices.shape[0])
        batch_indices.copy_(request)
        if seq_lens.shape[0] == 0:
            positions.zero_()
            return
        owner = request.clamp(min=0)
        first_new = seq_lens.long()[owner] - (append_indptr[1:] - append_indptr[:-1]).long()[owner]
        positions.copy_(torch.where(request >= 0, first_new + offset, 0))


class ReferenceSeqLens(Backend):
    name = "reference"

    def supports(self, problem: PageTableProblem) -> Support:
        return Support()

    def run(
        self,
        problem: PageTableProblem,
        seq_lens: torch.Tensor,
        kv_indptr: torch.Tensor,
        kv_last_page_len: torch.Tensor,
        page_size: int,
    ) -> None:
        pages = kv_indptr[1:] - kv_indptr[:-1]
        seq_lens.copy_(torch.where(pages > 0, (pages - 1) * page_size + kv_last_page_len, 0))
