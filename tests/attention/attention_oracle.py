"""Attention by the definition, one head and one row at a time in float64, and random problems around it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


def rotated(x, position, scale, theta):
    """RoPE of one vector, pair by pair (i, i + d/2), in Python floats."""
    half = len(x) // 2
    out = list(x)
    for i in range(half):
        angle = position / scale / theta ** (2 * i / len(x))
        c, s = math.cos(angle), math.sin(angle)
        out[i], out[i + half] = x[i] * c - x[i + half] * s, x[i + half] * c + x[i] * s
    return torch.tensor(out, dtype=torch.float64)


def attend(q, k, v, *, causal=False, window_left=-1, logits_soft_cap=0.0, sm_scale=None, mask=None, slopes=None,
           sinks=None, rope=None):  # fmt: skip
    """Output and base-2 log-sum-exp of one request, `[m, heads, d]` and `[m, heads]` float64."""
    q, k, v = q.double(), k.double(), v.double()
    (m, heads, d), n = q.shape, k.shape[0]
    group = heads // k.shape[1]
    scale = d**-0.5 if sm_scale is None else sm_scale
    out = torch.zeros(m, heads, v.shape[2], dtype=torch.float64)
    lse = torch.full((m, heads), -math.inf, dtype=torch.float64)
    for row in range(m):
        position = n - m + row
        for head in range(heads):
            keys, values = k[:, head // group], v[:, head // group]
            query = q[row, head]
            if rope is not None:
                query = rotated(query.tolist(), position, *rope)
                keys = torch.stack([rotated(key.tolist(), at, *rope) for at, key in enumerate(keys)]) if n else keys
            logits = keys @ query * scale
            if slopes is not None:
                logits = logits + slopes[head] * (torch.arange(n) - position)
            if logits_soft_cap:
                logits = logits_soft_cap * torch.tanh(logits / logits_soft_cap)
            at = torch.arange(n)
            seen = torch.ones(n, dtype=torch.bool)
            if mask is not None:
                seen &= mask[row]
            elif causal:
                seen &= at <= position
            if window_left >= 0:
                seen &= at >= position - window_left
            if not seen.any():
                continue
            logits, values = logits[seen], values[seen]
            total = torch.logsumexp(logits, 0)
            if sinks is not None:
                total = torch.logaddexp(total, sinks[head].double())
            out[row, head] = (logits - total).exp() @ values
            lse[row, head] = total / math.log(2)
    return out, lse


@dataclass
class PagedBatch:
    """Ragged requests over a paged cache, with every spelling of their tables."""

    qo_lens: list[int]
    kv_lens: list[int]
    page_size: int
    q: torch.Tensor
    k_cache: torch.Tensor  # [pages, page_size, kv_heads, d], NHD
    v_cache: torch.Tensor
    qo_indptr: torch.Tensor
    kv_indptr: torch.Tensor
    kv_indices: torch.Tensor
    last_page_len: torch.Tensor
    block_table: torch.Tensor

    @property
    def cache(self):
        return self.k_cache, self.v_cache

    def request(self, number):
        """Queries, keys and values of one request as rows."""
        begin, end = self.qo_indptr[number], self.qo_indptr[number + 1]
        pages = self.kv_indices[self.kv_indptr[number] : self.kv_indptr[number + 1]].long()
        n = self.kv_lens[number]
        k, v = (cache[pages].flatten(0, 1)[:n] for cache in self.cache)
        return self.q[begin:end], k, v

    def expected(self, **options):
        """The definition applied request by request; options that are lists hold one value for each."""
        parts = [
            attend(*self.request(i), **{k: v[i] if isinstance(v, list) else v for k, v in options.items()})
            for i in range(len(self.kv_lens))
        ]
        if not parts:
            return self.q.new_zeros(0, self.q.shape[1], self.v_cache.shape[3]), self.q.new_zeros(0, self.q.shape[1])
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def paged_batch(
    qo_lens, kv_lens, *, heads=4, kv_heads=2, dim=16, value_dim=None, page_size=4, dtype=torch.float32, seed=0
):
    """A random batch; pages are shuffled over a cache with unused ones, which hold NaN, as does the rest of last pages."""
    generator = torch.Generator().manual_seed(seed)
    counts = [-(-n // page_size) for n in kv_lens]
    total = sum(counts)
    order = torch.randperm(total + 3, generator=generator)[:total].to(torch.int32)

    def cache(size):
        pages = torch.full((total + 3, page_size, kv_heads, size), math.nan)
        first = 0
        for n, count in zip(kv_lens, counts, strict=True):
            rows = torch.full((count * page_size, kv_heads, size), math.nan)
            rows[:n] = torch.randn(n, kv_heads, size, generator=generator)
            pages[order[first : first + count].long()] = rows.view(count, page_size, kv_heads, size)
            first += count
        return pages.to(dtype)

    offsets = torch.tensor([0, *counts]).cumsum(0).to(torch.int32)
    table = torch.full((len(kv_lens), max(counts, default=0) + 1), -1, dtype=torch.int32)
    for i, count in enumerate(counts):
        table[i, :count] = order[offsets[i] : offsets[i + 1]]
    last = [n - (count - 1) * page_size if count else 0 for n, count in zip(kv_lens, counts, strict=True)]
    return PagedBatch(
        list(qo_lens), list(kv_lens), page_size,
        q=torch.randn(sum(qo_lens), heads, dim, generator=generator).to(dtype),
        k_cache=cache(dim), v_cache=cache(value_dim or dim),
        qo_indptr=torch.tensor([0, *qo_lens]).cumsum(0).to(torch.int32),
        kv_indptr=offsets, kv_indices=order, last_page_len=torch.tensor(last, dtype=torch.int32), block_table=table,
    )  # fmt: skip
