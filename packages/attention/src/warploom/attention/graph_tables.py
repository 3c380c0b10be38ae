"""Tables at fixed addresses, for wrappers whose `run` is captured in a CUDA graph.

`plan` copies the new lengths and pages into the same tensors, so that replaying the graph serves them. What does not fit
raises before anything is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from warploom.attention.tables import RequestTables
from warploom.core.errors import ArgumentError, PlanError
from warploom.core.workspace import allocate

__all__ = ["GraphTables"]


class GraphTables:
    """The captured maximum: tensors for at most so many requests, pages and mask elements.

    Parameters
    ----------
    op : str
        Named in messages.
    buffers : mapping of str to torch.Tensor
        The caller's buffers: `kv_indptr` and `qo_indptr` (int32) fix the batch size, `kv_indices` (int32) the number of
        pages, `mask` (bool or uint8) the size of custom masks. Those that are not given are allocated by the first plan,
        with that plan's sizes.
    """

    def __init__(self, op: str, buffers: Mapping[str, torch.Tensor | None]) -> None:
        self._op = op
        self._buffers = {name: buffer for name, buffer in buffers.items() if buffer is not None}
        self._fixed: RequestTables | None = None
        self._rows: int | None = None
        self._memory: dict[tuple[int, torch.device], torch.Tensor] = {}

    def seen_rows(self, rows: int) -> None:
        """Remember the queries of a run: a graph that was captured then reads no more of them."""
        self._rows = rows if self._rows is None else min(rows, self._rows)

    def load(self, tables: RequestTables) -> RequestTables:
        """Copy the tables in, padding the batch with empty requests, and return the fixed ones.

        Raises
        ------
        PlanError
            More requests, pages, mask elements, queries, or longer ones than the captured maximum. Queries are counted
            where the offsets are known on the host.
        """
        tables.complete()
        if self._fixed is None:
            self._fixed = self._allocate(tables)
        fixed = self._fixed
        self._check(fixed, tables)
        offsets = [(fixed.qo_indptr, tables.qo_indptr), (fixed.kv_indptr, tables.kv_indptr)]
        if fixed.mask_indptr is not None and tables.mask_indptr is not None:
            offsets.append((fixed.mask_indptr, tables.mask_indptr))
        lists = [(fixed.kv_lens, tables.kv_lens), (fixed.page_indices, tables.page_indices), (fixed.mask, tables.mask)]
        _copy([*offsets, *((to, source) for to, source in lists if to is not None and source is not None)])
        batch = tables.batch
        if batch < fixed.batch:
            fixed.kv_lens[batch:].zero_()
            for to, source in offsets:
                to[batch + 1 :].copy_(source[-1:].expand(fixed.batch - batch))
        # Lengths on the host belong to one plan, the tensors to all.
        return replace(fixed, origin=tables.origin, _host=tables._host, _page_range=[])

    def memory(self, nbytes: int, device: torch.device) -> torch.Tensor:
        """Bytes for what a plan writes, the same for all plans that need as many: captured graphs go on using them."""
        key = nbytes, device
        if key not in self._memory:
            self._memory[key] = allocate(nbytes, device)
        return self._memory[key]

    def _allocate(self, tables: RequestTables) -> RequestTables:
        device = tables.device
        given = self._buffers
        for name, buffer in given.items():
            if buffer.device != device:
                raise ArgumentError.of(self._op, f"{name} buffer", f"on {device}", buffer.device)
            if name != "mask" and buffer.dtype != torch.int32:
                raise ArgumentError.of(self._op, f"{name} buffer", "of dtype torch.int32", buffer.dtype)
        sizes = {name: given[name].shape[0] - 1 for name in ("kv_indptr", "qo_indptr") if name in given}
        if len(set(sizes.values())) > 1:
            raise ArgumentError.of(
                self._op, "qo_indptr buffer", f"of {sizes['kv_indptr'] + 1} elements", sizes["qo_indptr"] + 1
            )
        batch = next(iter(sizes.values()), tables.batch)

        def buffer_for(name: str, like: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
            if like is None:
                return None
            found = given.get(name)
            if found is None:
                return torch.zeros(like.shape[0], dtype=dtype, device=device)
            if found.dtype != dtype:
                raise ArgumentError.of(self._op, f"{name} buffer", f"of dtype {dtype}", found.dtype)
            return found

        def per_request(extra: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(batch + extra, dtype=dtype, device=device)

        return replace(
            tables,
            qo_indptr=given.get("qo_indptr", per_request(1, torch.int32)),
            kv_indptr=given.get("kv_indptr", per_request(1, torch.int32)),
            kv_lens=per_request(0, torch.int32),
            last_page_len=None,
            page_indices=buffer_for("kv_indices", tables.page_indices, torch.int32),
            mask=None if tables.mask is None else buffer_for("mask", tables.mask, tables.mask.dtype),
            mask_indptr=None if tables.mask is None else per_request(1, torch.int64),
        )

    def _check(self, fixed: RequestTables, tables: RequestTables) -> None:
        def fit(what: str, got: int, maximum: int) -> None:
            if got > maximum:
                raise PlanError(
                    f"{self._op}.plan: {got} {what} exceed the captured maximum of {maximum}; give larger buffers when the "
                    "wrapper is made, and capture again"
                )

        fit("requests", tables.batch, fixed.batch)
        if self._rows is not None and tables.known_rows is not None:
            fit("rows of queries", tables.known_rows, self._rows)
        for what, name in (("pages", "page_indices"), ("mask elements", "mask")):
            target, source = getattr(fixed, name), getattr(tables, name)
            if (target is None) != (source is None):
                had = "without" if target is None else "with"
                raise PlanError(f"{self._op}.plan: the graph was captured {had} {what}; make another wrapper")
            if source is not None:
                fit(what, source.shape[0], target.shape[0])
        if fixed.max_qo_len is not None:
            fit("queries per request", tables.max_qo_len or 0, fixed.max_qo_len)


def _copy(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Each second tensor to the beginning of the first, in one launch."""
    targets = [to if to.shape == source.shape else to[: source.shape[0]] for to, source in pairs]
    torch._foreach_copy_(targets, [source for _, source in pairs])
