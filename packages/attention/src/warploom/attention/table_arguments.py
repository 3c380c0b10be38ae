"""From callers' page tables and offsets to `RequestTables`.

All of FlashInfer's and vLLM's spellings (CSR indices with last-page lengths or with lengths, padded block tables,
ragged offsets) become lengths and offsets per request. What has to be computed for that is left to the planner of a kernel
(`RequestTables.unwritten`); nothing is copied to the host unless a backend asks (`RequestTables.on_host`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import torch

from warploom.attention.tables import RequestTables
from warploom.core.calls import Kept
from warploom.core.settings import settings
from warploom.core.tensors import Checker

__all__ = ["even_offsets", "joined_levels", "one_request", "page_table", "ragged_table"]

INDEX_DTYPES = (torch.int32, torch.int64)
_MOST_OFFSETS = 256
_even_offsets: Kept[tuple[int, int, torch.device, int], torch.Tensor] = Kept(_MOST_OFFSETS)


def page_table(
    check: Checker,
    queries: Any,
    page_size: int,
    *,
    indptr: Any = None,
    indices: Any = None,
    last_page_len: Any = None,
    kv_lens: Any = None,
    block_table: Any = None,
) -> RequestTables:
    """Tables of a paged cache, for `queries`: their offsets, or how many each request has.

    Either `block_table` (padded `[batch, max_pages]`) with `kv_lens`, or `indices` (packed) with two of `indptr`,
    `last_page_len` and `kv_lens`: lengths follow from the number of pages and the last page's, starts from the lengths.
    """
    qo = None if type(queries) is int else _offsets(check, "qo_indptr", queries)
    lengths = None if kv_lens is None else _indices(check, "kv_lens", kv_lens, "batch")
    offsets = last = None
    if block_table is not None:
        check.require(lengths is not None, "kv_lens", "given with a block table", None)
        table = _indices(check, "block_table", block_table, "batch", "max_pages")
        offsets, pages = even_offsets(table.shape[0], table.shape[1], table.device), table.view(-1)
    else:
        pages = _indices(check, "kv_indices", indices, "num_pages")
        if indptr is not None:
            offsets = _offsets(check, "kv_indptr", indptr)
        if lengths is None:
            last = _indices(check, "kv_last_page_len", last_page_len, "batch")
    qo, offsets, lengths, last = together(qo, offsets, lengths, last)
    batch, like = check["batch"], last if lengths is None else lengths
    unwritten: Literal["", "kv_lens", "kv_indptr"] = ""
    if offsets is None:
        offsets, unwritten = like.new_empty(batch + 1), "kv_indptr"
    elif lengths is None:
        lengths, unwritten = like.new_empty(batch), "kv_lens"
    return RequestTables(
        qo_indptr=even_offsets(batch, queries, like.device) if qo is None else qo,
        kv_indptr=offsets,
        kv_lens=lengths,
        page_indices=pages,
        page_size=page_size,
        last_page_len=last,
        unwritten=unwritten,
        max_qo_len=queries if qo is None else None,
    )


def ragged_table(check: Checker, qo_indptr: Any, kv_indptr: Any) -> RequestTables:
    """Tables of keys and values that lie end to end."""
    qo, kv = together(_offsets(check, "qo_indptr", qo_indptr), _offsets(check, "kv_indptr", kv_indptr))
    return RequestTables(qo_indptr=qo, kv_indptr=kv, kv_lens=kv.new_empty(kv.shape[0] - 1), unwritten="kv_lens")


def one_request(qo_len: int, kv_len: int, device: torch.device) -> RequestTables:
    """Tables of one request whose lengths are known: made on the device, so that a CUDA graph can capture it."""

    def made(at: torch.device, origin: RequestTables | None) -> RequestTables:
        return RequestTables(
            qo_indptr=_offsets_of(1, qo_len, at),
            kv_indptr=_offsets_of(1, kv_len, at),
            kv_lens=torch.empty(1, dtype=torch.int32, device=at),
            unwritten="kv_lens",
            max_qo_len=qo_len,
            origin=origin,
        )

    on_cpu = made(torch.device("cpu"), None)
    return on_cpu if device.type == "cpu" else made(device, on_cpu)


def joined_levels(op: str, levels: Sequence[RequestTables]) -> RequestTables:
    """The requests of all levels as one batch over the same cache; the queries of each level are rows of their own."""
    for level in levels:
        if level.complete().device.type == "cpu" or settings.debug_checks:  # where it is free
            level.validate(op)  # since in the batch an entry too many is the next level's
    rows = [level.qo_indptr[-1:] for level in levels]
    pages = [level.page_indices for level in levels if level.page_indices is not None]
    before = list(itertools.accumulate((x.shape[0] for x in pages), initial=0))
    starts = [level.kv_indptr[:-1] + start for level, start in zip(levels, before, strict=False)]
    offsets = [levels[0].qo_indptr]
    for number, level in enumerate(levels[1:], 1):
        offsets.append(level.qo_indptr[1:] + sum(rows[1:number], rows[0]))
    return RequestTables(
        qo_indptr=torch.cat(offsets).to(torch.int32),
        kv_indptr=torch.cat([*starts, levels[-1].kv_indptr[-1:] + before[-2]]).to(torch.int32),
        kv_lens=torch.cat([level.kv_lens for level in levels]),
        page_indices=torch.cat(pages),
        page_size=levels[0].page_size,
    )


def even_offsets(batch: int, step: int, device: torch.device) -> torch.Tensor:
    """`[batch + 1]` int32: 0, step, 2 * step ... The same tensor every time, as steps are alike: it must not be written.

    A stream has tensors of its own, since nobody waits for the launch that fills one; so has a captured graph, whose
    memory may be gone when it is.

    Examples
    --------
    >>> even_offsets(3, 16, torch.device("cpu"))
    tensor([ 0, 16, 32, 48], dtype=torch.int32)
    """
    stream = 0
    if device.type == "cuda":
        if torch.cuda.is_current_stream_capturing():
            return _offsets_of(batch, step, device)
        stream = torch._C._cuda_getCurrentRawStream(device.index)
    key = batch, step, device, stream
    found = _even_offsets.get(key)
    if found is None:
        found = _offsets_of(batch, step, device)
        if type(found) is torch.Tensor:  # not one that is traced
            _even_offsets.keep(key, found)
    return found


def _offsets_of(batch: int, step: int, device: torch.device) -> torch.Tensor:
    if step == 0:
        return torch.zeros(batch + 1, dtype=torch.int32, device=device)
    return torch.arange(0, (batch + 1) * step, step, dtype=torch.int32, device=device)


def together(*tensors: torch.Tensor | None) -> tuple[Any, ...]:
    """The tensors, of which some may be missing, on one device: on the GPU of the first that is on one."""
    given = [tensor.device for tensor in tensors if tensor is not None]
    if given.count(given[0]) == len(given):
        return tensors
    device = next(device for device in given if device.type != "cpu")
    return tuple(x if x is None or x.device == device else x.to(device, non_blocking=True) for x in tensors)


def _is_plain(value: Any, rank: int) -> bool:
    """Whether an index argument can be taken as it is, as what engines give at every step."""
    return type(value) is torch.Tensor and value.dtype == torch.int32 and value.dim() == rank and value.is_contiguous()


def _indices(check: Checker, name: str, value: Any, *dims: str) -> torch.Tensor:
    """A contiguous int32 view or copy of an index argument, on whatever device it is."""
    if _is_plain(value, len(dims)):
        for dim, size in zip(dims, value.shape, strict=True):
            check.bind(dim, size, name)
        return value
    tensor = check.tensor(name, value, " ".join(dims), dtype=INDEX_DTYPES, device="any")
    return tensor.to(torch.int32).contiguous()


def _offsets(check: Checker, name: str, value: Any) -> torch.Tensor:
    """As `_indices`, of `batch + 1` elements."""
    indptr = value if _is_plain(value, 1) else _indices(check, name, value, f"{name}_entries")
    size = indptr.shape[0]
    check.require(size > 0, name, "of batch + 1 elements", "none")
    check.bind("batch", size - 1, name)
    return indptr
