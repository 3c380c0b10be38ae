"""Writing to the paged cache, and the arithmetic on page tables that serves it."""

from __future__ import annotations

from typing import Any

import torch

from warploom.attention.backends.cuda.page import CudaAppend, CudaBatchIndicesPositions, CudaSeqLens
from warploom.attention.backends.reference.page import ReferenceAppend, ReferenceBatchIndicesPositions, ReferenceSeqLens
from warploom.attention.paged_cache import (
    check_conversion,
    check_page_table,
    check_places,
    index_vector,
    unpack_paged_kv_cache,
)
from warploom.attention.problems.page import AppendProblem, PageTableProblem
from warploom.core.backends import Operator
from warploom.core.device import device_guard
from warploom.core.settings import settings
from warploom.core.tensors import Checker, have_unit_strides
from warploom.core.torch_ops import register_op

__all__ = [
    "append_paged_kv_cache",
    "append_paged_mla_kv_cache",
    "get_batch_indices_positions",
    "get_seq_lens",
    "write_seq_lens",
]

APPEND = Operator("append_paged_kv_cache", family="attention", backends=(CudaAppend(), ReferenceAppend()))
BATCH_INDICES_POSITIONS = Operator(
    "get_batch_indices_positions",
    family="attention",
    backends=(CudaBatchIndicesPositions(), ReferenceBatchIndicesPositions()),
)
SEQ_LENS = Operator("get_seq_lens", family="attention", backends=(CudaSeqLens(), ReferenceSeqLens()))


def append_paged_kv_cache(
    append_key: Any,
    append_value: Any,
    batch_indices: Any,
    positions: Any,
    paged_kv_cache: Any,
    kv_indices: Any,
    kv_indptr: Any,
    kv_last_page_len: Any,
    kv_layout: str = "NHD",
    *,
    backend: str = "auto",
) -> None:
    """Write new keys and values to the pages of their requests.

    Row `i` goes to request `b = batch_indices[i]` at position `p = positions[i]`, that is to entry `p % page_size` of
    page `kv_indices[kv_indptr[b] + p // page_size]`. A row with a negative index or position is padding and is skipped.
    Two rows for one place leave either of them there. Nothing is copied to the host, so the call can be captured in a
    graph.

    Parameters
    ----------
    append_key, append_value : torch.Tensor
        `[nnz, num_kv_heads, head_dim]`. Their dtype is the cache's, or both are of float32, float16, bfloat16,
        float8_e4m3fn and float8_e5m2: then values are rounded to the cache's dtype, and those beyond the range of an
        fp8 type saturate.
    batch_indices, positions : torch.Tensor
        `[nnz]`, int32 (int64 is converted), as `get_batch_indices_positions` gives them.
    paged_kv_cache : torch.Tensor or tuple of torch.Tensor
        `[pages, 2, page_size, num_kv_heads, head_dim]` (NHD) or `[pages, 2, num_kv_heads, page_size, head_dim]` (HND),
        or a pair `(k, v)` of 4-D tensors without the dimension of 2. Any strides; written in place.
    kv_indices : torch.Tensor
        `[kv_indptr[-1]]`, int32, pages of all requests. Longer is fine.
    kv_indptr : torch.Tensor
        `[batch + 1]`, int32, where each request's pages start in `kv_indices`.
    kv_last_page_len : torch.Tensor
        `[batch]`, int32. Not needed to place the rows; here for FlashInfer's argument order.
    kv_layout : {"NHD", "HND"}
        Order of a page's dimensions.
    backend : str
        "auto", "cuda" or "reference".

    Raises
    ------
    ArgumentError
        A tensor of the wrong dtype, shape or device. Rows beyond the pages of their request and page indices outside
        the cache are found on the CPU, and on a GPU when the setting `debug_checks` is on.

    Examples
    --------
    >>> import torch
    >>> from warploom.attention import append_paged_kv_cache, get_batch_indices_positions
    >>> kv_indptr, kv_indices = torch.tensor([0, 2, 3]).int(), torch.tensor([4, 1, 0]).int()
    >>> last_page_len = torch.tensor([1, 3]).int()                      # lengths 5 and 3 after the append
    >>> where = get_batch_indices_positions(torch.tensor([0, 1, 4]).int(), torch.tensor([5, 3]).int(), 4)
    >>> cache = torch.zeros(6, 2, 4, 8, 64)                             # 6 pages of 4 entries, 8 heads
    >>> new_k, new_v = torch.randn(4, 8, 64), torch.randn(4, 8, 64)
    >>> append_paged_kv_cache(new_k, new_v, *where, cache, kv_indices, kv_indptr, last_page_len)
    >>> bool((cache[1, 0, 0] == new_k[0]).all()), bool((cache[0, 1, :3] == new_v[1:]).all())
    (True, True)
    """
    check = Checker("append_paged_kv_cache")
    k_cache, v_cache = unpack_paged_kv_cache(check, paged_kv_cache, kv_layout)
    key = check.tensor("append_key", append_key, "nnz num_kv_heads head_dim")
    value = check.tensor("append_value", append_value, "nnz num_kv_heads value_dim", dtype=key.dtype)
    check_conversion(check, "append_key", key, k_cache)
    table = check_page_table(check, batch_indices, positions, kv_indices, kv_indptr, kv_last_page_len)
    _append(k_cache, v_cache, key, value, *table, backend)


def append_paged_mla_kv_cache(
    append_ckv: Any,
    append_kpe: Any,
    batch_indices: Any,
    positions: Any,
    ckv_cache: Any,
    kpe_cache: Any,
    kv_indices: Any,
    kv_indptr: Any,
    kv_last_page_len: Any,
    *,
    backend: str = "auto",
) -> None:
    """Write new latents and rotary keys of multi-head latent attention to the pages of their requests.

    Parameters
    ----------
    append_ckv : torch.Tensor
        `[nnz, head_dim_ckv]`, compressed key-values; dtypes as in `append_paged_kv_cache`.
    append_kpe : torch.Tensor
        `[nnz, head_dim_kpe]`, the part of the keys that carries the position.
    ckv_cache, kpe_cache : torch.Tensor
        `[pages, page_size, head_dim_ckv]` and `[pages, page_size, head_dim_kpe]`. Any strides, so both may be slices of
        one tensor; written in place.
    batch_indices, positions, kv_indices, kv_indptr, kv_last_page_len, backend
        As in `append_paged_kv_cache`.

    Raises
    ------
    ArgumentError
        As in `append_paged_kv_cache`.

    Examples
    --------
    >>> import torch
    >>> from warploom.attention import append_paged_mla_kv_cache
    >>> cache = torch.zeros(2, 4, 512 + 64)
    >>> new = torch.randn(1, 512 + 64)
    >>> page, one = torch.tensor([1]).int(), torch.tensor([0, 1]).int()
    >>> append_paged_mla_kv_cache(new[:, :512], new[:, 512:], torch.tensor([0]).int(), torch.tensor([2]).int(),
    ...                           cache[..., :512], cache[..., 512:], page, one, torch.tensor([3]).int())
    >>> bool((cache[1, 2] == new[0]).all())
    True
    """
    check = Checker("append_paged_mla_kv_cache")
    ckv = check.tensor("ckv_cache", ckv_cache, "pages page_size head_dim_ckv")
    kpe = check.tensor("kpe_cache", kpe_cache, "pages page_size head_dim_kpe", dtype=ckv.dtype)
    check.require(check["page_size"] > 0, "ckv_cache", "of page_size 1 or more", "page_size 0")
    new_ckv = check.tensor("append_ckv", append_ckv, "nnz head_dim_ckv")
    new_kpe = check.tensor("append_kpe", append_kpe, "nnz head_dim_kpe", dtype=new_ckv.dtype)
    check_conversion(check, "append_ckv", new_ckv, ckv)
    table = check_page_table(check, batch_indices, positions, kv_indices, kv_indptr, kv_last_page_len)
    # A latent is one head that all query heads share.
    _append(ckv.unsqueeze(2), kpe.unsqueeze(2), new_ckv.unsqueeze(1), new_kpe.unsqueeze(1), *table, backend)


def get_batch_indices_positions(
    append_indptr: Any,
    seq_lens: Any,
    nnz: int,
    batch_indices: Any = None,
    positions: Any = None,
    *,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Request and position of every row of a ragged tensor whose rows are the tails of their requests.

    Parameters
    ----------
    append_indptr : torch.Tensor
        `[batch + 1]`, int32, where each request's rows start.
    seq_lens : torch.Tensor
        `[batch]`, int32, lengths of the requests with these rows.
    nnz : int
        Number of rows to describe. Rows from `append_indptr[-1]` on are padding: request -1, position 0.
    batch_indices, positions : torch.Tensor, optional
        `[nnz]`, int32: buffers for the result, e.g. those of a captured graph.
    backend : str
        "auto", "cuda" or "reference".

    Returns
    -------
    batch_indices, positions : torch.Tensor
        `[nnz]`, int32.

    Raises
    ------
    ArgumentError
        A tensor of the wrong dtype, shape or device.

    Examples
    --------
    >>> import torch
    >>> from warploom.attention import get_batch_indices_positions
    >>> requests, where = get_batch_indices_positions(torch.tensor([0, 1, 3]).int(), torch.tensor([5, 4]).int(), 4)
    >>> requests.tolist(), where.tolist()
    ([0, 1, 1, -1], [4, 2, 3, 0])
    """
    check = Checker("get_batch_indices_positions")
    indptr = index_vector(check, "append_indptr", append_indptr, "offsets")
    check.require(indptr.shape[0] > 0, "append_indptr", "of batch + 1 elements", "none")
    check.bind("batch", indptr.shape[0] - 1, "append_indptr")
    lengths = index_vector(check, "seq_lens", seq_lens, "batch")
    check.require(nnz >= 0, "nnz", "0 or more", nnz)
    requests = check.output("batch_indices", batch_indices, (nnz,), torch.int32)
    where = check.output("positions", positions, (nnz,), torch.int32)
    _batch_indices_positions(requests, where, indptr, lengths, backend)
    return requests, where


def get_seq_lens(
    kv_indptr: Any, kv_last_page_len: Any, page_size: int, *, out: Any = None, backend: str = "auto"
) -> torch.Tensor:
    """Lengths of requests from their numbers of pages: `(pages - 1) * page_size + last_page_len`, 0 without pages.

    Parameters
    ----------
    kv_indptr : torch.Tensor
        `[batch + 1]`, int32, where each request's pages start.
    kv_last_page_len : torch.Tensor
        `[batch]`, int32, entries in use on each request's last page.
    page_size : int
        Entries on a page.
    out : torch.Tensor, optional
        `[batch]`, int32.
    backend : str
        "auto", "cuda" or "reference".

    Returns
    -------
    torch.Tensor
        `[batch]`, int32.

    Raises
    ------
    ArgumentError
        A tensor of the wrong dtype, shape or device.

    Examples
    --------
    >>> import torch
    >>> from warploom.attention import get_seq_lens
    >>> get_seq_lens(torch.tensor([0, 2, 2, 3]).int(), torch.tensor([1, 0, 4]).int(), 4).tolist()
    [5, 0, 4]
    """
    check = Checker("get_seq_lens")
    indptr = index_vector(check, "kv_indptr", kv_indptr, "offsets")
    check.require(indptr.shape[0] > 0, "kv_indptr", "of batch + 1 elements", "none")
    check.bind("batch", indptr.shape[0] - 1, "kv_indptr")
    last_page_len = index_vector(check, "kv_last_page_len", kv_last_page_len, "batch")
    check.require(page_size > 0, "page_size", "1 or more", page_size)
    lengths = check.output("out", out, (check["batch"],), torch.int32)
    write_seq_lens(lengths, indptr, last_page_len, page_size, backend)
    return lengths


@register_op(
    "append_paged_kv_cache(Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor key, Tensor value, Tensor batch_indices, "
    "Tensor positions, Tensor kv_indices, Tensor kv_indptr, str backend) -> ()"
)
def _append(
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    batch_indices: torch.Tensor,
    positions: torch.Tensor,
    kv_indices: torch.Tensor,
    kv_indptr: torch.Tensor,
    backend: str,
) -> None:
    problem = AppendProblem(
        num_kv_heads=key.shape[1],
        key_dim=key.shape[2],
        value_dim=value.shape[2],
        input_dtype=key.dtype,
        cache_dtype=k_cache.dtype,
        unit_strides=have_unit_strides(key, value, k_cache, v_cache),
        **AppendProblem.where(k_cache),
    )
    chosen = APPEND.select(problem, backend).backend
    if settings.debug_checks or not k_cache.is_cuda:
        check_places(APPEND.name, k_cache, batch_indices, positions, kv_indices, kv_indptr)
    with device_guard(k_cache):
        chosen.run(problem, k_cache, v_cache, key, value, batch_indices, positions, kv_indices, kv_indptr)


@register_op(
    "get_batch_indices_positions(Tensor(a!) batch_indices, Tensor(b!) positions, Tensor append_indptr, "
    "Tensor seq_lens, str backend) -> ()"
)
def _batch_indices_positions(
    batch_indices: torch.Tensor,
    positions: torch.Tensor,
    append_indptr: torch.Tensor,
    seq_lens: torch.Tensor,
    backend: str,
) -> None:
    problem = PageTableProblem(**PageTableProblem.where(append_indptr))
    chosen = BATCH_INDICES_POSITIONS.select(problem, backend).backend
    with device_guard(append_indptr):
        chosen.run(problem, batch_indices, positions, append_indptr, seq_lens)


@register_op(
    "get_seq_lens(Tensor(a!) seq_lens, Tensor kv_indptr, Tensor kv_last_page_len, SymInt page_size, str backend) -> ()"
)
def write_seq_lens(
    seq_lens: torch.Tensor, kv_indptr: torch.Tensor, kv_last_page_len: torch.Tensor, page_size: int, backend: str
) -> None:
    problem = PageTableProblem(**PageTableProblem.where(kv_indptr))
    chosen = SEQ_LENS.select(problem, backend).backend
    with device_guard(kv_indptr):
        chosen.run(problem, seq_lens, kv_indptr, kv_last_page_len, page_size)
