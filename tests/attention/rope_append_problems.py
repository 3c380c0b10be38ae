"""New tokens that are rotated and appended, and what they must leave in the cache, by the definition in float64."""

from dataclasses import replace

import torch
from append_problems import caches_of, expected_memory, memory

from warploom.attention import apply_rope_append_paged_kv_cache
from warploom.core.testing import assert_close, random_normal

# Half the spacing of numbers, relative, and of the smallest. Keys are rounded to their own dtype before.
ROUNDING = {
    torch.float32: (2**-24, 0.0),
    torch.float16: (2**-11, 2**-25),
    torch.bfloat16: (2**-8, 0.0),
    torch.float8_e4m3fn: (2**-4, 2**-10),
    torch.float8_e5m2: (2**-3, 2**-17),
}
ANGLE = 2**-23  # what float32 leaves of an angle, relative, and of its sines


def turned(x, positions, rotary_dim, interleave, rope_scale=1.0, rope_theta=1e4):
    """Pairs of components as complex numbers times e^(i angle)."""
    head = x[..., :rotary_dim].double()
    pairs = head.unflatten(-1, (-1, 2)) if interleave else head.unflatten(-1, (2, -1)).transpose(-1, -2)
    exponents = torch.arange(rotary_dim // 2, dtype=torch.float64, device=x.device) * 2 / rotary_dim
    angles = positions.double()[:, None, None] * (rope_theta**-exponents / rope_scale).float().double()
    spun = torch.view_as_real(
        torch.complex(pairs[..., 0], pairs[..., 1]) * torch.polar(torch.ones_like(angles), angles)
    )
    joined = spun.flatten(-2) if interleave else spun.transpose(-1, -2).flatten(-2)
    return torch.cat([joined, x[..., rotary_dim:].double()], -1)


def close(got, want, dtypes, positions, what):
    """Up to the roundings to these dtypes, of float32 products with sines of float32 angles."""
    rtol = sum(ROUNDING[dtype][0] for dtype in set(dtypes)) * 1.01
    atol = sum(ROUNDING[dtype][1] for dtype in set(dtypes))
    size = float(want.abs().max()) if want.numel() else 0.0
    furthest = float(positions.max()) if positions.numel() else 0.0
    assert_close(got.double(), want, rtol=rtol, atol=atol + size * (furthest + 4) * ANGLE, what=what)


def assert_rotated_and_appended(append, *, q=None, out=None, backend, rotary_dim=None, interleave=False, **scaling):
    """Run it; compare queries and new keys with the definition, and every other byte behind the cache with the expected."""
    k, v = append.rows
    q = random_normal((len(k), 6, k.shape[2]), k.dtype, seed=9, device=k.device) if q is None else q
    options = {"interleave": interleave, "rope_scale": 1.0, "rope_theta": 1e4, **scaling}
    before = q.clone(), k.clone(), v.clone()
    expected = expected_memory(replace(append, rows=(torch.zeros_like(k), v)))
    tables = append.kv_indices, append.kv_indptr, append.last_page_len
    got = apply_rope_append_paged_kv_cache(
        q, *append.rows, append.positions, append.requests, append.cache, *tables, append.layout,
        rotary_dim=rotary_dim, out=q if out == "q" else out, backend=backend, **options,
    )  # fmt: skip
    assert got is q if out == "q" else torch.equal(q, before[0])
    assert torch.equal(k, before[1])
    assert torch.equal(v, before[2])

    owned = (append.requests >= 0) & (append.positions >= 0)
    where, requests = append.positions[owned].long(), append.requests[owned].long()
    rotated = (rotary_dim or k.shape[2], interleave, options["rope_scale"], options["rope_theta"])
    close(got[owned], turned(before[0][owned], where, *rotated), [q.dtype], where, "queries")
    assert torch.equal(got[~owned], before[0][~owned])

    keys = append.planes[0]
    pages = append.kv_indices[append.kv_indptr[requests].long() + where // keys.shape[1]].long()
    bits = keys.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[keys.element_size()])
    new = bits[pages, where % keys.shape[1]].view(keys.dtype)
    close(new, turned(k[owned], where, *rotated), [k.dtype, keys.dtype], where, "keys")
    bits[pages, where % keys.shape[1]] = 0
    for cache, want in zip(caches_of(append), expected, strict=True):
        assert torch.equal(memory(cache), want)
