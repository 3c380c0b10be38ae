"""The kernel of `rope.cuh`, against the reference: the same float32 angles, so that only roundings differ."""

import pytest
import torch

from warploom.attention import (
    apply_llama31_rope,
    apply_llama31_rope_pos_ids,
    apply_rope,
    apply_rope_inplace,
    apply_rope_pos_ids,
    apply_rope_pos_ids_inplace,
    apply_rope_with_cos_sin_cache,
    apply_rope_with_cos_sin_cache_inplace,
)
from warploom.attention.rope_call import COS_SIN_CACHE, ROPE
from warploom.core.testing import assert_close, cases

pytestmark = pytest.mark.gpu(min_arch=80)

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
# One rounding to 16 bits each; of float32 sines, two products and a sum.
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 2e-6}


def tensors(nnz, heads, dim, dtype, seed=0, stride=None):
    """Queries and keys; with a stride, views of rows that hold both."""
    generator = torch.Generator("cuda").manual_seed(seed)
    both = torch.randn(nnz, sum(heads), stride or dim, generator=generator, device="cuda").to(dtype)
    return both[:, : heads[0], :dim], both[:, heads[0] :, :dim]


def close(got, want, dtype):
    for name, a, b in zip(("q", "k"), got, want, strict=True):
        scale = float(b.float().abs().max()) if b.numel() else 1.0
        assert_close(a, b, rtol=0, atol=TOLERANCE[dtype] * max(scale, 1.0), what=name)


@pytest.mark.parametrize(
    *cases(
        dtype=DTYPES, interleave=[False, True], rotary_dim=[None, 64, 48, 2], index_dtype=[torch.int32, torch.int64],
        stride=[None, 131],
    )
)  # fmt: skip
def test_positions(case):
    q, k = tensors(37, (8, 2), 128, case.dtype, stride=case.stride)
    positions = torch.randint(0, 1 << 20, (37,), dtype=case.index_dtype, device="cuda")
    positions[:3] = torch.tensor([0, 1, (1 << 24) - 1])
    options = {"rotary_dim": case.rotary_dim, "interleave": case.interleave, "rope_theta": 5e5, "rope_scale": 2.0}
    got, want = (apply_rope_pos_ids(q, k, positions, **options, backend=name) for name in ("cuda", "reference"))
    close(got, want, case.dtype)
    assert ROPE.last.name == "reference"
    apply_rope_pos_ids_inplace(q, k, positions, **options, backend="cuda")
    assert torch.equal(q, got[0])
    assert torch.equal(k, got[1])


@pytest.mark.parametrize("interleave", [False, True])
@pytest.mark.parametrize("dim", [8, 20, 36, 80, 256, 1024])
def test_heads_of_any_size(dim, interleave):
    q, k = tensors(9, (5, 1), dim, torch.bfloat16)
    positions = torch.arange(9, device="cuda") * 1000
    got, want = (apply_rope_pos_ids(q, k, positions, None, interleave, backend=name) for name in ("cuda", "reference"))
    close(got, want, torch.bfloat16)


@pytest.mark.parametrize("llama31", [False, True])
def test_requests(llama31):
    apply = apply_llama31_rope if llama31 else apply_rope
    q, k = tensors(50, (4, 4), 64, torch.float32)
    q[44:] = torch.inf  # padding stays as it is
    indptr = torch.tensor([0, 10, 10, 11, 44], dtype=torch.int32, device="cuda")
    offsets = torch.tensor([100, 7, 0, 1 << 21], dtype=torch.int64, device="cuda")
    got, want = (apply(q[:44], k[:44], indptr, offsets, backend=name) for name in ("cuda", "reference"))
    close(got, want, torch.float32)
    padded = apply(q, k, indptr, offsets, backend="cuda")
    assert torch.equal(padded[0][44:], q[44:])
    assert torch.equal(padded[1][44:], k[44:])
    assert torch.equal(padded[0][:44], got[0])
    if not llama31:
        apply_rope_inplace(q, k, indptr, offsets, backend="cuda")
        assert torch.equal(q, padded[0])


def test_frequencies_of_llama31():
    q, k = tensors(20, (2, 1), 128, torch.float32)
    positions = torch.arange(20, device="cuda") * 6553
    options = {"rope_scale": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "old_context_len": 8192}
    got, want = (apply_llama31_rope_pos_ids(q, k, positions, **options, backend=x) for x in ("cuda", "reference"))
    close(got, want, torch.float32)


@pytest.mark.parametrize(
    *cases(dtype=DTYPES, cache_dtype=DTYPES, is_neox=[False, True], rotary_dim=[128, 64, 30], spare=[0, 3])
)
def test_cos_sin_caches(case):
    q, k = (x.reshape(29, -1) for x in tensors(29, (6, 2), 128, case.dtype))
    angles = torch.rand(300, case.rotary_dim // 2, device="cuda") * 6
    cache = torch.cat([angles.cos(), angles.sin(), angles[:, : case.spare]], 1).to(case.cache_dtype)[
        :, : case.rotary_dim
    ]
    positions = torch.randint(0, 300, (29,), device="cuda")
    got, want = (
        apply_rope_with_cos_sin_cache(positions, q, k, 128, cache, case.is_neox, backend=name)
        for name in ("cuda", "reference")
    )
    close(got, want, case.dtype)
    apply_rope_with_cos_sin_cache_inplace(positions, q, k, 128, cache, case.is_neox, backend="cuda")
    assert torch.equal(q, got[0])
    assert torch.equal(k, got[1])


def test_auto_takes_the_kernel_and_leaves_strided_components():
    q, k = tensors(3, (2, 1), 64, torch.float16)
    positions = torch.arange(3, device="cuda")
    apply_rope_pos_ids(q, k, positions)
    assert ROPE.last.name == "cuda"
    table = torch.ones(3, 64, device="cuda")
    apply_rope_with_cos_sin_cache(positions, q.reshape(3, -1), k.reshape(3, -1), 64, table)
    assert COS_SIN_CACHE.last.name == "cuda"
    spread = torch.randn(3, 2, 64, 2, device="cuda").half()[..., 0]
    got = apply_rope_pos_ids(spread, spread, positions)
    assert ROPE.last.name == "reference"
    close(got, apply_rope_pos_ids(spread.contiguous(), spread.contiguous(), positions), torch.float16)


def test_addresses_beyond_32_bits():
    rows = (1 << 31) // (64 * 128) + 3
    q = torch.zeros(rows, 64, 128, dtype=torch.float16, device="cuda")
    q[-1] = 1
    k = torch.ones(rows, 1, 128, dtype=torch.float16, device="cuda")
    positions = torch.full((rows,), 5, device="cuda")
    got = apply_rope_pos_ids(q, k, positions, backend="cuda")
    assert torch.equal(got[0][-1], got[1][-1].expand(64, 128))
    assert not got[0][-2].any()
