"""Where each request's queries, keys and mask lie, in the one form that every backend reads."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from warploom.attention.page import write_seq_lens
from warploom.core.errors import ArgumentError
from warploom.core.tensors import Checker

__all__ = ["HostTables", "RequestTables"]


@dataclass(frozen=True)
class HostTables:
    """The lengths and starts as Python integers, for backends and views that loop over requests."""

    qo_starts: list[int]
    qo_lens: list[int]
    kv_indptr: list[int]
    kv_lens: list[int]
    mask_indptr: list[int]


@dataclass(kw_only=True, slots=True, eq=False)
class RequestTables:
    """Device tensors that describe the requests of one plan.

    Attributes
    ----------
    qo_indptr : torch.Tensor
        `[batch + 1]` int32, where each request's rows start in the queries and the output.
    kv_indptr : torch.Tensor
        `[batch + 1]` int32: where each request's entries in `page_indices` start and the one's before it end, or its rows in
        ragged keys.
    kv_lens : torch.Tensor
        `[batch]` int32, keys of each request.
    page_indices : torch.Tensor or None
        Flat int32 page numbers; a padded block table lies here row after row. None for ragged keys.
    page_size : int
        Entries of a page, 0 for ragged keys.
    last_page_len : torch.Tensor or None
        `[batch]` int32, entries of each last page, where lengths follow from them.
    unwritten : {"", "kv_lens", "kv_indptr"}
        What follows from the other tables and has memory, but no values yet: `complete` writes it, or the planner of a
        kernel, which saves a launch.
    mask, mask_indptr : torch.Tensor or None
        The flat custom mask (bool) or its bytes (uint8), and `[batch + 1]` int64 offsets into it.
    max_qo_len : int or None
        Longest query, where it is known without asking the device.
    origin : RequestTables or None
        The same on the CPU, if it came from there.
    """

    qo_indptr: torch.Tensor
    kv_indptr: torch.Tensor
    kv_lens: torch.Tensor
    page_indices: torch.Tensor | None = None
    page_size: int = 0
    last_page_len: torch.Tensor | None = None
    unwritten: Literal["", "kv_lens", "kv_indptr"] = ""
    mask: torch.Tensor | None = None
    mask_indptr: torch.Tensor | None = None
    max_qo_len: int | None = None
    origin: RequestTables | None = field(default=None, repr=False)
    _host: list[HostTables] = field(default_factory=list, repr=False)
    _page_range: list[tuple[int, int]] = field(default_factory=list, repr=False)

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

    def complete(self) -> RequestTables:
        """These tables, with what follows from the others written."""
        unwritten, self.unwritten = self.unwritten, ""
        if unwritten == "kv_indptr":
            self.kv_indptr[:1].zero_()
            counts = (self.kv_lens + (self.page_size - 1)) // self.page_size
            torch.cumsum(counts, 0, dtype=torch.int32, out=self.kv_indptr[1:])
        elif unwritten == "kv_lens" and self.last_page_len is None:
            torch.sub(self.kv_indptr[1:], self.kv_indptr[:-1], out=self.kv_lens)
        elif unwritten == "kv_lens":
            write_seq_lens(self.kv_lens, self.kv_indptr, self.last_page_len, self.page_size, "auto")
        return self

    def to(self, device: torch.device) -> RequestTables:
        """These tables on the device of the queries; what is there already is not copied, so later changes show."""

        def move(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        self.complete()
        small_on_cpu = not (self.qo_indptr.is_cuda or self.kv_lens.is_cuda or self.kv_indptr.is_cuda)
        return replace(
            self,
            qo_indptr=self.qo_indptr.to(device, non_blocking=True),
            kv_indptr=self.kv_indptr.to(device, non_blocking=True),
            kv_lens=self.kv_lens.to(device, non_blocking=True),
            last_page_len=None,
            origin=self if small_on_cpu else None,
            page_indices=move(self.page_indices),
            mask=move(self.mask),
            mask_indptr=move(self.mask_indptr),
        )

    def with_mask(self, check: Checker, custom_mask: Any, packed_custom_mask: Any) -> RequestTables:
        """Attach a custom mask, flat per request and query-major; packed wins if both are given."""
        if custom_mask is None and packed_custom_mask is None:
            return self
        self.complete()
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
            near = (self.origin or self).complete()
            qo, kv_lens = near.qo_indptr.tolist(), near.kv_lens.tolist()
            qo_lens = [stop - start for start, stop in itertools.pairwise(qo)]
            self._host.append(
                HostTables(
                    qo_starts=qo[:-1],
                    qo_lens=qo_lens,
                    kv_indptr=near.kv_indptr.tolist(),
                    kv_lens=kv_lens,
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
                for start, length in zip(host.kv_indptr, host.kv_lens, strict=False)
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
        for request, (entries, length) in enumerate(zip(itertools.pairwise(host.kv_indptr), host.kv_lens, strict=True)):
            start, end = entries
            if length < 0 or start < 0:
                raise ArgumentError.of(op, "kv_lens", "0 or more", f"{length} for request {request}")
            if self.page_indices is None:
                continue
            needed, end = start - (-length // self.page_size), min(end, self.page_indices.shape[0])
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
