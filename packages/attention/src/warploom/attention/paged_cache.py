"""The paged key-value cache as an argument: one 5-D tensor or a pair of 4-D ones, in either layout."""

from __future__ import annotations

from typing import Any

import torch

from warploom.core.errors import ArgumentError
from warploom.core.tensors import Checker

_PLANE_DIMS = {"NHD": "pages page_size num_kv_heads", "HND": "pages num_kv_heads page_size"}
_INDEX_DTYPES = (torch.int32, torch.int64)
_CONVERTIBLE = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


def unpack_paged_kv_cache(
    check: Checker, paged_kv_cache: Any, kv_layout: str, name: str = "paged_kv_cache"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Check a paged cache and view it as keys and values, both `[pages, page_size, num_kv_heads, dim]`.

    Binds `pages`, `page_size`, `num_kv_heads`, `head_dim` and `value_dim` (equal to `head_dim` for a 5-D tensor).

    Parameters
    ----------
    check : Checker
        Of the calling operator.
    paged_kv_cache : tensor or pair of tensors
        `[pages, 2, page_size, kv_heads, dim]` (NHD), `[pages, 2, kv_heads, page_size, dim]` (HND), or a tuple `(k, v)`
        of the same without the dimension of 2, whose last dimensions may differ.
    kv_layout : {"NHD", "HND"}
        Order of the page's dimensions.

    Raises
    ------
    ArgumentError
        Unknown layout, wrong rank, or keys and values that do not match.
    """
    check.require(kv_layout in _PLANE_DIMS, "kv_layout", "'NHD' or 'HND'", repr(kv_layout))
    plane = _PLANE_DIMS[kv_layout]
    if isinstance(paged_kv_cache, (tuple, list)):
        check.require(len(paged_kv_cache) == 2, name, "a tensor or a pair (k, v)", f"{len(paged_kv_cache)} items")
        k = check.tensor(f"{name}[0]", paged_kv_cache[0], f"{plane} head_dim")
        v = check.tensor(f"{name}[1]", paged_kv_cache[1], f"{plane} value_dim", dtype=k.dtype)
    else:
        pages, rest = plane.split(" ", 1)
        both = check.tensor(name, paged_kv_cache, f"{pages} 2 {rest} head_dim")
        check.bind("value_dim", check["head_dim"], name)
        k, v = both[:, 0], both[:, 1]
    check.require(check["page_size"] > 0, name, "of page_size 1 or more", "page_size 0")
    return (k, v) if kv_layout == "NHD" else (k.transpose(1, 2), v.transpose(1, 2))


def index_vector(check: Checker, name: str, value: Any, dims: str) -> torch.Tensor:
    """Check a vector of indices; int32 without gaps."""
    return check.tensor(name, value, dims, dtype=_INDEX_DTYPES).to(torch.int32).contiguous()


def check_page_table(
    check: Checker, batch_indices: Any, positions: Any, kv_indices: Any, kv_indptr: Any, kv_last_page_len: Any
) -> tuple[torch.Tensor, ...]:
    """Check the index tensors of an append; the last one has no part in placing rows and is not returned."""
    requests = index_vector(check, "batch_indices", batch_indices, "nnz")
    where = index_vector(check, "positions", positions, "nnz")
    indices = index_vector(check, "kv_indices", kv_indices, "num_indices")
    indptr = index_vector(check, "kv_indptr", kv_indptr, "offsets")
    check.require(indptr.shape[0] > 0, "kv_indptr", "of batch + 1 elements", "none")
    check.bind("batch", indptr.shape[0] - 1, "kv_indptr")
    check.tensor("kv_last_page_len", kv_last_page_len, "batch", dtype=_INDEX_DTYPES)
    return requests, where, indices, indptr


def check_conversion(check: Checker, name: str, rows: torch.Tensor, cache: torch.Tensor) -> None:
    """Raise `ArgumentError` unless rows have the cache's dtype or one that converts to it."""
    fits = rows.dtype == cache.dtype or (rows.dtype in _CONVERTIBLE and cache.dtype in _CONVERTIBLE)
    check.require(fits, name, f"of the cache's dtype {cache.dtype} or of one that converts to it", rows.dtype)


def check_places(
    op: str,
    k_cache: torch.Tensor,
    batch_indices: torch.Tensor,
    positions: torch.Tensor,
    kv_indices: torch.Tensor,
    kv_indptr: torch.Tensor,
) -> None:
    """Raise `ArgumentError` unless every new row has a page of its request and that page exists. Synchronises."""

    def refuse(name: str, expected: str, got: object, hint: str = "") -> ArgumentError:
        return ArgumentError.of(op, name, expected, got, hint)

    num_pages, page_size = k_cache.shape[:2]
    owned = (batch_indices >= 0) & (positions >= 0)
    request, position = batch_indices[owned].long(), positions[owned].long()
    if request.numel() == 0:
        return
    batch = kv_indptr.shape[0] - 1
    if int(request.max()) >= batch:
        raise refuse("batch_indices", f"below the batch size {batch}", int(request.max()))
    pages = (kv_indptr[1:] - kv_indptr[:-1]).long()[request]
    beyond = position >= pages * page_size
    if bool(beyond.any()):
        row = int(beyond.nonzero()[0])
        within = f"within the {int(pages[row])} pages of {page_size} entries of request {int(request[row])}"
        raise refuse("positions", within, int(position[row]), "Give the request its new pages before the append.")
    slot = kv_indptr.long()[request] + position // page_size
    if int(slot.max()) >= kv_indices.shape[0]:
        raise refuse("kv_indices", f"of kv_indptr[-1] = {int(kv_indptr[-1])} elements", kv_indices.shape[0])
    page = kv_indices[slot]
    outside = (page < 0) | (page >= num_pages)
    if bool(outside.any()):
        raise refuse("kv_indices", f"page indices from 0 to {num_pages - 1}", int(page[outside][0]))
