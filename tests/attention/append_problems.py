"""Ragged appends to paged caches, and what they must leave in the cache, computed row by row."""

from dataclasses import dataclass

import torch

from warploom.core.testing import indptr_of, random_normal, random_strided


@dataclass
class Append:
    """Arguments of `append_paged_kv_cache`; `cache` is what the caller passes, `planes` its NHD views of keys and values."""

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

    `strided` is the padding of a cache and of rows with gaps, 0 for dense ones; `padding` adds rows of no request between
    the others.
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
        last_page_len=torch.tensor([(n - 1) % page_size + 1 if n else 0 for n in lengths], dtype=torch.int32, device=device),
        layout=layout,
    )


def rounded(row, dtype):
    """A row in the cache's dtype: fp8 saturates, where torch's own conversion gives NaN."""
    if row.dtype != dtype and dtype.itemsize == 1:
        limit = torch.finfo(dtype).max
        row = row.float().clamp(-limit, limit)
    return row.to(dtype)


def expected_planes(append):
    """Keys and values of the cache after the append, as bytes, one row after the other."""
    planes = [plane.clone() for plane in append.planes]
    page_size = planes[0].shape[1]
    requests, positions = append.requests.tolist(), append.positions.tolist()
    indices, indptr = append.kv_indices.tolist(), append.kv_indptr.tolist()
    for i, (request, position) in enumerate(zip(requests, positions, strict=True)):
        if request < 0 or position < 0:
            continue
        page = indices[indptr[request] + position // page_size]
        for plane, rows in zip(planes, append.rows, strict=True):
            plane[page, position % page_size] = rounded(rows[i], plane.dtype)
    return [as_bytes(plane) for plane in planes]


def as_bytes(tensor):
    """The bits of a tensor: NaN equals itself and every untouched element counts."""
    return tensor.contiguous().view(torch.uint8).cpu()


def assert_appended(append, run):
    """Run the append and compare all of the cache, and what surrounds it, with the row-by-row result."""
    expected = expected_planes(append)
    surroundings = [_hidden(plane) for plane in append.planes]
    run(append)
    for got, want in zip(append.planes, expected, strict=True):
        assert torch.equal(as_bytes(got), want)
    for plane, before in zip(append.planes, surroundings, strict=True):
        assert torch.equal(_hidden(plane), before), "memory outside the cache was written"


def _hidden(plane):
    """Bytes of the storage behind a view that no element of the cache shows (NaN fill of `random_strided`)."""
    whole = torch.empty(0, dtype=torch.uint8, device=plane.device).set_(plane.untyped_storage())
    return whole.sum(dtype=torch.int64).cpu() * 0 if whole.numel() == plane.nbytes else _outside(plane, whole)


def _outside(plane, whole):
    shown = torch.zeros_like(whole, dtype=torch.bool)
    itemsize = plane.element_size()
    marks = shown.view(-1, itemsize)
    marks.as_strided(plane.shape, [s for s in plane.stride()])  # noqa: C416
    return whole
