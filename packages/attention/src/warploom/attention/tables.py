"""Where each request's queries, keys and mask lie, in the one form that every backend reads.

All of FlashInfer's and vLLM's spellings (CSR indices with last-page lengths or with lengths, padded block tables,
ragged offsets) become a start and a length per request. That takes a few elementwise operations on the device where the
caller's tensors are; nothing is copied to the host unless a backend asks (`RequestTables.on_host`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from warploom.attention.page import write_seq_lens
from warploom.core.errors import ArgumentError
from warploom.core.tensors import Checker

__all__ = ["HostTables", "RequestTables", "joined_levels", "one_request", "page_table", "ragged_table"]

INDEX_DTYPES = (torch.int32, torch.int64)


@dataclass(frozen=True)
class HostTables:
    """The lengths and starts as Python integers, for backends and views that loop over requests."""

    qo_starts: list[int]
    qo_lens: list[int]
    kv_starts: list[int]
    kv_lens: list[int]
    kv_stops: list[int]
    mask_indptr: list[int]


@dataclass(frozen=True, kw_only=True)
class RequestTables:
    """Device tensors that describe the requests of one plan.

    Attributes
    ----------
    qo_indptr : torch.Tensor
        `[batch + 1]` int32, where each request's rows start in the queries and the output.
    kv_lens : torch.Tensor
        `[batch]` int32, keys of each request.
    kv_starts : torch.Tensor
        `[batch]` int32: the first entry of each request in `page_indices`, or its first row in ragged keys.
    kv_stops : torch.Tensor or None
        `[batch]` int32, the end of each request's entries in `page_indices`; for checks only.
    page_indices : torch.Tensor or None
        Flat int32 page numbers; a padded block table lies here row after row. None for ragged keys.
    page_size : int
        Entries of a page, 0 for ragged keys.
    mask, mask_indptr : torch.Tensor or None
        The flat custom mask (bool) or its bytes (uint8), and `[batch + 1]` int64 offsets into it.
    max_qo_len : int or None
        Longest query, where it is known without asking the device.
    """

    qo_indptr: torch.Tensor
    kv_lens: torch.Tensor
    kv_starts: torch.Tensor
    kv_stops: torch.Tensor | None = None
    page_indices: torch.Tensor | None = None
    page_size: int = 0
    mask: torch.Tensor | None = None
    mask_indptr: torch.Tensor | None = None
    max_qo_len: int | None = None
    origin: RequestTables | None = field(
        default=None, repr=False, compare=False
    )  # the same on the CPU, if it came from there
    _host: list[HostTables] = field(default_factory=list, repr=False, compare=False)
    _page_range: list[tuple[int, int]] = field(default_factory=list, repr=False, compare=False)

    @property
    def batch(self) -> int:
        return self.kv_lens.shape[0]

    @property
    def device(self) -> torch.device:
        return self.kv_lens.device

    @property
    def mask_kind(self) -> str:
        """How the problem names this mask."""
        if self.mask is None:
            return "none"
        return "dense" if self.mask.dtype == torch.bool else "packed"

    def to(self, device: torch.device) -> RequestTables:
        """These tables on the device of the queries; what is there already is not copied, so later changes show."""

        def move(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        small_on_cpu = not (self.qo_indptr.is_cuda or self.kv_lens.is_cuda or self.kv_starts.is_cuda)
        return replace(
            self,
            qo_indptr=self.qo_indptr.to(device, non_blocking=True),
            kv_lens=self.kv_lens.to(device, non_blocking=True),
            kv_starts=self.kv_starts.to(device, non_blocking=True),
            kv_stops=None,  # checked before the move
            origin=self if small_on_cpu else None,
            page_indices=move(self.page_indices),
            mask=move(self.mask),
            mask_indptr=move(self.mask_indptr),
            _host=self._host,
        )

    def with_mask(self, check: Checker, custom_mask: Any, packed_custom_mask: Any) -> RequestTables:
        """Attach a custom mask, flat per request and query-major; packed wins if both are given."""
        if custom_mask is None and packed_custom_mask is None:
            return self
        sizes = (self.qo_indptr[1:] - self.qo_indptr[:-1]).long() * self.kv_lens.long()
        if packed_custom_mask is not None:
            mask = check.tensor("packed_custom_mask", packed_custom_mask, "mask_bytes", dtype=torch.uint8, device="any")
            sizes = (sizes + 7) // 8  # every request starts at a byte
        else:
            mask = check.tensor("custom_mask", custom_mask, "mask_elements", dtype=torch.bool, device="any")
        indptr = torch.zeros(self.batch + 1, dtype=torch.int64, device=sizes.device)
        torch.cumsum(sizes, 0, out=indptr[1:])
        tables = replace(self, mask=mask.contiguous(), mask_indptr=indptr, _host=[])
        if not indptr.is_cuda or self.origin is not None:
            needed = tables.on_host().mask_indptr[-1]
            if needed > mask.shape[0]:
                name = "custom_mask" if mask.dtype == torch.bool else "packed_custom_mask"
                raise ArgumentError.of(check.op, name, f"of {needed} elements for these lengths", mask.shape[0])
        return tables

    def on_host(self) -> HostTables:
        """Starts and lengths as integers; the first call copies them from the device and synchronises."""
        if not self._host:
            near = self.origin or self
            qo, kv_lens = near.qo_indptr.tolist(), near.kv_lens.tolist()
            qo_lens = [stop - start for start, stop in itertools.pairwise(qo)]
            self._host.append(
                HostTables(
                    qo_starts=qo[:-1],
                    qo_lens=qo_lens,
                    kv_starts=near.kv_starts.tolist(),
                    kv_lens=kv_lens,
                    kv_stops=[] if near.kv_stops is None else near.kv_stops.tolist(),
                    mask_indptr=_mask_offsets(self.mask_kind, qo_lens, kv_lens),
                )
            )
        return self._host[0]

    @property
    def known_rows(self) -> int | None:
        """Rows of queries, where the lengths are on the host already."""
        return sum(self._host[0].qo_lens) if self._host else None

    def page_range(self) -> tuple[int, int]:
        """Smallest and largest page number that the requests use; synchronises like `on_host`, and only once."""
        if not self._page_range:
            host, pages = self.on_host(), (self.origin or self).page_indices
            assert pages is not None
            used = [
                pages[start : start - (-length // self.page_size)]
                for start, length in zip(host.kv_starts, host.kv_lens, strict=True)
                if length > 0
            ]
            low, high = torch.cat(used).aminmax() if used else (0, -1)
            self._page_range.append((int(low), int(high)))
        return self._page_range[0]

    def validate(self, op: str) -> None:
        """Check the values against each other; free on CPU tensors, a synchronisation on a GPU."""
        host = self.on_host()
        if any(length < 0 for length in host.qo_lens) or host.qo_starts[:1] not in ([], [0]):
            raise ArgumentError.of(
                op, "qo_indptr", "offsets that start at 0 and do not decrease", self.qo_indptr.tolist()
            )
        for request, (start, length) in enumerate(zip(host.kv_starts, host.kv_lens, strict=True)):
            if length < 0 or start < 0:
                raise ArgumentError.of(op, "kv_lens", "0 or more", f"{length} for request {request}")
            if self.page_indices is None:
                continue
            needed = start + -(-length // self.page_size)
            end = min(self.page_indices.shape[0], host.kv_stops[request] if host.kv_stops else needed)
            if length and needed > end:
                raise ArgumentError.of(
                    op, "kv_indices", f"at least {needed - start} pages for request {request} with {length} keys",
                    f"{end - start} pages of {self.page_size}",
                )  # fmt: skip


def _mask_offsets(kind: str, qo_lens: list[int], kv_lens: list[int]) -> list[int]:
    """Where each request's mask starts, in elements or in bytes, and where the last one ends."""
    if kind == "none":
        return []
    sizes = (m * n if kind == "dense" else -(-m * n // 8) for m, n in zip(qo_lens, kv_lens, strict=True))
    return [0, *itertools.accumulate(sizes)]


def index_tensor(check: Checker, name: str, value: Any, dims: str) -> torch.Tensor:
    """An int32 view or copy of an index argument, on whatever device it is."""
    plain = type(value) is torch.Tensor and value.dtype == torch.int32 and value.dim() == 1 and value.is_contiguous()
    if plain and " " not in dims:
        check.bind(dims, value.shape[0], name)  # what engines give at every step, and nothing to be said about it
        return value
    tensor = check.tensor(name, value, dims, dtype=INDEX_DTYPES, device="any")
    return tensor if tensor.dtype == torch.int32 and tensor.is_contiguous() else tensor.to(torch.int32).contiguous()


def _offsets(check: Checker, name: str, value: Any) -> torch.Tensor:
    indptr = index_tensor(check, name, value, f"{name}_entries")
    check.require(indptr.shape[0] > 0, name, "of batch + 1 elements", "none")
    check.bind("batch", indptr.shape[0] - 1, name)
    return indptr


def together(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors on one device: on the GPU of the first that is on one."""
    if len({t.device for t in tensors}) == 1:
        return tensors
    device = next((t.device for t in tensors if t.is_cuda), tensors[0].device)
    return tuple(t if t.device == device else t.to(device, non_blocking=True) for t in tensors)


def page_table(
    check: Checker,
    qo_indptr: Any,
    page_size: int,
    *,
    indptr: Any = None,
    indices: Any = None,
    last_page_len: Any = None,
    kv_lens: Any = None,
    block_table: Any = None,
    max_qo_len: int | None = None,
) -> RequestTables:
    """Tables of a paged cache.

    Either `block_table` (padded `[batch, max_pages]`) with `kv_lens`, or `indices` (packed) with two of `indptr`,
    `last_page_len` and `kv_lens`: lengths follow from the number of pages and the last page's, starts from the lengths.
    """
    qo = _offsets(check, "qo_indptr", qo_indptr)
    lengths = None if kv_lens is None else index_tensor(check, "kv_lens", kv_lens, "batch")
    if block_table is not None:
        check.require(lengths is not None, "kv_lens", "given with a block table", None)
        table = index_tensor(check, "block_table", block_table, "batch max_pages")
        starts = torch.arange(table.shape[0], dtype=torch.int32, device=table.device) * table.shape[1]
        stops = starts + table.shape[1]
        pages = table.reshape(-1)
    else:
        pages = index_tensor(check, "kv_indices", indices, "num_pages")
        if indptr is None:
            assert lengths is not None
            counts = (lengths + (page_size - 1)) // page_size
            stops = counts.cumsum(0).to(torch.int32)
            starts = stops - counts
        else:
            offsets = _offsets(check, "kv_indptr", indptr)
            starts, stops = offsets[:-1], offsets[1:]
            if lengths is None:
                last = index_tensor(check, "kv_last_page_len", last_page_len, "batch")
                offsets, last = together(offsets, last)
                lengths = torch.empty_like(last)
                write_seq_lens(lengths, offsets, last, page_size, "auto")
    assert lengths is not None
    qo, lengths, starts, stops = together(qo, lengths, starts, stops)
    return RequestTables(
        qo_indptr=qo,
        kv_lens=lengths,
        kv_starts=starts,
        kv_stops=stops,
        page_indices=pages,
        page_size=page_size,
        max_qo_len=max_qo_len,
    )


def joined_levels(levels: Sequence[RequestTables]) -> RequestTables:
    """The requests of all levels as one batch over the same cache; the queries of each level are rows of their own."""
    rows = [level.qo_indptr[-1:] for level in levels]
    pages = [level.page_indices for level in levels if level.page_indices is not None]
    before = itertools.accumulate((x.shape[0] for x in pages), initial=0)
    starts, stops = [], []
    for level, start in zip(levels, before, strict=False):
        starts.append(level.kv_starts + start)
        if level.kv_stops is not None:
            stops.append(level.kv_stops + start)
    offsets = [levels[0].qo_indptr]
    for number, level in enumerate(levels[1:], 1):
        offsets.append(level.qo_indptr[1:] + sum(rows[1:number], rows[0]))
    return RequestTables(
        qo_indptr=torch.cat(offsets).to(torch.int32),
        kv_lens=torch.cat([level.kv_lens for level in levels]),
        kv_starts=torch.cat(starts).to(torch.int32),
        kv_stops=torch.cat(stops).to(torch.int32) if len(stops) == len(levels) else None,
        page_indices=torch.cat(pages),
        page_size=levels[0].page_size,
    )


def ragged_table(check: Checker, qo_indptr: Any, kv_indptr: Any) -> RequestTables:
    """Tables of keys and values that lie end to end."""
    qo, kv = together(_offsets(check, "qo_indptr", qo_indptr), _offsets(check, "kv_indptr", kv_indptr))
    return RequestTables(qo_indptr=qo, kv_lens=kv[1:] - kv[:-1], kv_starts=kv[:-1])


def one_request(qo_len: int, kv_len: int, device: torch.device) -> RequestTables:
    """Tables of one request whose lengths are known: made on the device, so that a CUDA graph can capture it."""

    def made(at: torch.device, origin: RequestTables | None) -> RequestTables:
        return RequestTables(
            qo_indptr=torch.arange(2, dtype=torch.int32, device=at) * qo_len,
            kv_lens=torch.full((1,), kv_len, dtype=torch.int32, device=at),
            kv_starts=torch.zeros(1, dtype=torch.int32, device=at),
            max_qo_len=qo_len,
            origin=origin,
        )

    on_cpu = made(torch.device("cpu"), None)
    return on_cpu if device.type == "cpu" else made(device, on_cpu)
