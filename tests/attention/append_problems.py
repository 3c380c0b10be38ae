"""Ragged appends to paged caches, and what they must leave in the cache, computed row by row."""

from dataclasses import dataclass, replace

import torch

from warploom.attention import append_paged_kv_cache
from warploom.core.testing import indptr_of, random_normal, random_strided


@dataclass
class Append:
    """Arguments of `append_paged_kv_cache`: `cache` as the caller passes it, `planes` its NHD views."""

    rows: tuple[torch.Tensor, torch.Tensor]
    requests: torch.Tensor
    positions: torch.Tensor
    cache: torch.Tensor | tuple[torch.Tensor, torch.Tensor]
    kv_indices: torch.Tensor
    kv_indptr: torch.Tensor
    last_page_len: torch.Tensor
    layout: str

    @property
    def arguments(self):
        tables = (self.kv_indices, self.kv_indptr, self.last_page_len)
        return (*self.rows, self.requests, self.positions, self.cache, *tables, self.layout)

    @property
    def planes(self):
        k, v = (self.cache[:, 0], self.cache[:, 1]) if isinstance(self.cache, torch.Tensor) else self.cache
        return (k, v) if self.layout == "NHD" else (k.transpose(1, 2), v.transpose(1, 2))


def make_append(
    append_lens,
    before_lens,
    *,
    page_size=16,
    heads=2,
    head_dim=64,
    dtype=torch.float16,
    cache_dtype=None,
    layout="NHD",
    one_tensor=True,
    strided=0,
    padding=0,
    spare_pages=3,
    device="cpu",
    seed=0,
):
    """An append of `append_lens[b]` rows to each request after `before_lens[b]`, on shuffled pages.

    `strided` is the padding of a cache and of rows with gaps, 0 for dense ones; `padding` adds rows of no request
    between the others.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = [a + b for a, b in zip(append_lens, before_lens, strict=True)]
    pages = [-(-length // page_size) for length in lengths]
    total = sum(pages) + spare_pages
    requests = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(append_lens, dtype=torch.int64))
    starts = [torch.arange(b, b + a) for a, b in zip(append_lens, before_lens, strict=True)]
    positions = torch.cat([torch.zeros(0, dtype=torch.int64), *starts])
    if padding:
        order = torch.randperm(len(requests) + padding, generator=generator)
        requests = torch.cat([requests, torch.full((padding,), -1)])[order]
        positions = torch.cat([positions, torch.randint(0, 10_000, (padding,), generator=generator)])[order]

    def values(shape, of, seed):
        if strided:
            return random_strided(shape, of, seed=seed, device=device, padding=strided)
        return random_normal(shape, of, seed=seed, device=device)

    page = (page_size, heads, head_dim) if layout == "NHD" else (heads, page_size, head_dim)
    kept = cache_dtype or dtype
    if one_tensor:
        cache = values((total, 2, *page), kept, seed + 1)
    else:
        cache = values((total, *page), kept, seed + 1), values((total, *page), kept, seed + 2)
    shape = (len(requests), heads, head_dim)
    return Append(
        rows=(values(shape, dtype, seed + 3), values(shape, dtype, seed + 4)),
        requests=requests.int().to(device),
        positions=positions.int().to(device),
        cache=cache,
        kv_indices=torch.randperm(total, generator=generator)[: sum(pages)].int().to(device),
        kv_indptr=indptr_of(pages, device),
        last_page_len=torch.tensor(
            [(n - 1) % page_size + 1 if n else 0 for n in lengths], dtype=torch.int32, device=device
        ),
        layout=layout,
    )


def rounded(row, dtype):
    """A row in the cache's dtype: fp8 saturates, where torch's own conversion gives NaN."""
    if row.dtype != dtype and dtype.itemsize == 1:
        limit = torch.finfo(dtype).max
        row = row.float().clamp(-limit, limit)
    return row.to(dtype)


def memory(tensor):
    """All bytes behind a tensor, those between its rows too."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def with_own_memory(tensor):
    """The same view of a copy of all the memory behind a tensor."""
    return memory(tensor).clone().view(tensor.dtype).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def caches_of(append):
    return (append.cache,) if isinstance(append.cache, torch.Tensor) else append.cache


def expected_memory(append):
    """All bytes behind the cache after the append, written one row after the other."""
    copies = tuple(with_own_memory(cache) for cache in caches_of(append))
    planes = replace(append, cache=copies if len(copies) == 2 else copies[0]).planes
    page_size = planes[0].shape[1]
    requests, positions = append.requests.tolist(), append.positions.tolist()
    indices, indptr = append.kv_indices.tolist(), append.kv_indptr.tolist()
    for i, (request, position) in enumerate(zip(requests, positions, strict=True)):
        if request < 0 or position < 0:
            continue
        page = indices[indptr[request] + position // page_size]
        for plane, rows in zip(planes, append.rows, strict=True):
            plane[page, position % page_size] = rounded(rows[i], plane.dtype)
    return [memory(copy) for copy in copies]


def assert_appended(append, **options):
    """Append through the public function; compare every byte of the cache and between its rows with the expected."""
    expected = expected_memory(append)
    append_paged_kv_cache(*append.arguments, **options)
    for cache, want in zip(caches_of(append), expected, strict=True):
        assert torch.equal(memory(cache), want)
