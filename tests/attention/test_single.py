"""Attention of one request against the definition."""

import numpy as np
import pytest
import torch
from attention_oracle import attend
from hypothesis import given, settings
from hypothesis import strategies as st

from warploom.attention import (
    AttentionVariant,
    packbits,
    single_decode_with_kv_cache,
    single_prefill_with_kv_cache,
    single_prefill_with_kv_cache_return_lse,
)
from warploom.core.errors import ArgumentError, UnsupportedError
from warploom.core.testing import assert_close, cases


def problem(m, n, heads=4, kv_heads=2, dim=16, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(r, h, dim, generator=generator).to(dtype) for r, h in ((m, heads), (n, kv_heads), (n, kv_heads))
    ]


def check(got, expected):
    assert_close(got[0], expected[0], what="out")
    assert_close(got[1], expected[1], what="lse")


@pytest.mark.parametrize(*cases(m=[1, 5], n=[1, 3, 20], causal=[False, True], backend=["reference", "sdpa", "cutlass"]))
def test_prefill(case):
    q, k, v = problem(case.m, case.n)
    got = single_prefill_with_kv_cache(q, k, v, causal=case.causal, return_lse=True, backend=case.backend)
    check(got, attend(q, k, v, causal=case.causal))


@settings(max_examples=40, deadline=None)
@given(
    m=st.integers(0, 6), n=st.integers(0, 40), kv_heads=st.integers(1, 3), group=st.integers(1, 5),
    dim=st.sampled_from([8, 24, 64]), causal=st.booleans(), window=st.sampled_from([-1, 0, 3]),
    cap=st.sampled_from([0.0, 2.5]), hnd=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_prefill_random(m, n, kv_heads, group, dim, causal, window, cap, hnd, seed):
    q, k, v = problem(m, n, kv_heads * group, kv_heads, dim, seed=seed)
    kv = [x.transpose(0, 1).contiguous() for x in (k, v)] if hnd else (k, v)
    got = single_prefill_with_kv_cache_return_lse(
        q, *kv, causal=causal, window_left=window, logits_soft_cap=cap, kv_layout="HND" if hnd else "NHD"
    )
    check(got, attend(q, k, v, causal=causal, window_left=window, logits_soft_cap=cap))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    q, k, v = problem(4, 33, dtype=dtype)
    out, lse = single_prefill_with_kv_cache_return_lse(q, k, v, causal=True)
    assert out.dtype == dtype
    expected = attend(q, k, v, causal=True)
    assert_close(out, expected[0], dtype=dtype)
    assert_close(lse, expected[1], dtype=torch.float32)


@pytest.mark.parametrize("mode", ["NONE", "ROPE_LLAMA", "ALIBI"])
def test_decode_with_positions(mode):
    q, k, v = problem(1, 19)
    got = single_decode_with_kv_cache(q[0], k, v, pos_encoding_mode=mode, return_lse=True)
    slopes = torch.tensor([2.0 ** (-2 * (i + 1)) for i in range(4)])
    expected = attend(
        q, k, v, rope=(1.0, 1e4) if mode == "ROPE_LLAMA" else None, slopes=slopes if mode == "ALIBI" else None
    )
    check((got[0][None], got[1][None]), expected)


def test_scales_as_numbers_and_per_head():
    q, k, v = problem(3, 12)
    expected = attend(q * 2, k, v * 3, causal=True)
    check(single_prefill_with_kv_cache_return_lse(q, k, v, 2.0, 1.0, 3.0, causal=True), expected)
    per_head = torch.tensor([1.0, 2.0, 0.5, 3.0])
    k_scale = torch.tensor([2.0, 0.25])  # one for each key-value head
    got = single_prefill_with_kv_cache_return_lse(q, k, v, per_head, k_scale, None, causal=True)
    check(got, attend(q * per_head[:, None], k * k_scale[:, None], v, causal=True))


def test_fp8_cache_with_scales():
    q, k, v = problem(3, 30, dtype=torch.bfloat16)
    k8, v8 = (x.to(torch.float8_e4m3fn) for x in (k, v))
    got = single_prefill_with_kv_cache(q, k8, v8, scale_k=0.5, scale_v=2.0, causal=True)
    expected = attend(q, k8.float() * 0.5, v8.float() * 2.0, causal=True)[0]
    assert_close(got, expected, dtype=torch.bfloat16)


@pytest.mark.parametrize("packed", [False, True])
def test_custom_mask(packed):
    q, k, v = problem(5, 13)
    mask = torch.rand(5, 13, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[2] = False  # a row that sees nothing
    given = {"packed_custom_mask": packbits(mask.flatten(), "little")} if packed else {"custom_mask": mask}
    out, lse = single_prefill_with_kv_cache_return_lse(q, k, v, **given)
    check((out, lse), attend(q, k, v, mask=mask))
    assert (out[2] == 0).all()
    assert (lse[2] == -torch.inf).all()


def test_sinks_and_lse_base():
    q, k, v = problem(3, 9)
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0])
    out, lse = single_prefill_with_kv_cache_return_lse(q, k, v, sinks=sinks, lse_base="e")
    expected = attend(q, k, v, sinks=sinks)
    check((out, lse / np.log(2)), expected)


def test_hidden_nan_leaves_no_trace():
    q, k, v = problem(2, 8)
    k[6:], v[6:] = torch.nan, torch.nan
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[:, 6:] = False
    out = single_prefill_with_kv_cache(q, k, v, custom_mask=mask)
    assert_close(out, attend(q, k[:6], v[:6])[0])


def test_strided_inputs_and_buffers():
    q, k, v = problem(4, 21)
    wide = torch.randn(21, 2, 32)
    wide[..., ::2] = k
    out, lse = torch.full((4, 4, 16), torch.nan), torch.full((4, 4), torch.nan)
    got = single_prefill_with_kv_cache(q, wide[..., ::2], v, causal=True, out=out, lse=lse, return_lse=True)
    assert got[0] is out
    check((out, lse), attend(q, k, v, causal=True))


def test_numpy_inputs():
    q, k, v = problem(2, 5)
    out = single_prefill_with_kv_cache(q.numpy(), k.numpy(), v.numpy())
    assert_close(out, attend(q, k, v)[0])


CLIPPED = AttentionVariant(
    name="distance_bias",
    logits="logits + bias[qo_head_idx] + slope * fabsf(qo_pos - kv_idx)",
    mask="(kv_idx + qo_idx) % 2 == 0",
    tensors={"bias": torch.float32},
    scalars={"slope": float},
    reference_logits=lambda logits, at: logits + at.bias[at.qo_head_idx] + at.slope * (at.qo_pos - at.kv_idx).abs(),
    reference_mask=lambda at: (at.kv_idx + at.qo_idx) % 2 == 0,
)


def test_a_users_variant():
    q, k, v = problem(4, 11)
    bias = torch.randn(4)
    got = single_prefill_with_kv_cache(q, k, v, variant=CLIPPED, variant_args=(bias, -0.25))
    scores = torch.einsum("mhd,nhd->hmn", q.double(), k.double().repeat_interleave(2, 1)) / 4
    at, to = torch.arange(4)[:, None], torch.arange(11)[None]
    scores = scores + bias[:, None, None] - 0.25 * (at + 7 - to).abs()
    weights = scores.masked_fill((at + to) % 2 == 1, -torch.inf).softmax(-1)
    assert_close(got, torch.einsum("hmn,nhd->mhd", weights, v.double().repeat_interleave(2, 1)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.randn(3, 5, 16)}, "num_qo_heads.*multiple of num_kv_heads"),
        ({"k": torch.randn(7, 2, 24)}, "head_dim_qk"),
        ({"q": torch.randn(3, 16)}, "3-D|q"),
        ({"v": torch.randn(7, 2, 16).half()}, "dtype"),
        ({"v": torch.randn(8, 2, 16)}, "kv_len"),
        ({"kv_layout": "DHN"}, "NHD"),
        ({"pos_encoding_mode": "ROPE"}, "ROPE_LLAMA"),
        ({"sm_scale": float("nan")}, "finite"),
        ({"lse_base": "10"}, "log2"),
        ({"backend": "flahs"}, "'auto' or one of"),
        ({"custom_mask": torch.ones(3, dtype=torch.bool)}, "elements"),
        ({"custom_mask": torch.ones(7, 3, dtype=torch.bool)}, "qo_len"),
        ({"packed_custom_mask": torch.ones(2, dtype=torch.uint8)}, "3 elements"),
        ({"packed_custom_mask": torch.ones(3)}, "uint8"),
        ({"rope_scale": 0.0}, "rope_scale"),
        ({"logits_soft_cap": -1.0}, "logits_soft_cap"),
        ({"out": torch.empty(3, 4, 8)}, "shape"),
        ({"variant": CLIPPED}, "distance_bias"),
        ({"k": [1, 2]}, "DLPack"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = dict(zip("qkv", problem(3, 7), strict=True)) | change
    with pytest.raises(ArgumentError, match=message):
        single_prefill_with_kv_cache(**arguments)


def test_a_head_dim_that_no_kernel_takes():
    with pytest.raises(ArgumentError, match="multiple of 8 up to 256"):
        single_prefill_with_kv_cache(*problem(2, 3, dim=20))


def test_a_backend_that_refuses_prints_the_table():
    with pytest.raises(UnsupportedError, match=r"(?s)sdpa +no:.*soft cap.*reference +yes"):
        single_prefill_with_kv_cache(*problem(2, 3), logits_soft_cap=1.0, backend="sdpa")


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_compiles_in_one_graph(backend):
    def layer(q, k, v):
        return single_prefill_with_kv_cache_return_lse(q * 1.0, k, v, causal=True, backend=backend)

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for m, n in ((3, 9), (4, 17)):
        q, k, v = problem(m, n)
        check(compiled(q, k, v), attend(q, k, v, causal=True))


def test_one_program_is_exported():
    class Layer(torch.nn.Module):
        def forward(self, q, k, v):
            return single_prefill_with_kv_cache(q, k, v, causal=True)

    q, k, v = problem(3, 9)
    exported = torch.export.export(Layer(), (q, k, v))
    assert_close(exported.module()(q, k, v), attend(q, k, v, causal=True)[0])


def test_long_prefills_go_by_blocks_of_rows(monkeypatch):
    monkeypatch.setattr("warploom.attention.backends.reference.attention._LOGITS_AT_ONCE", 4 * 23 * 2)
    q, k, v = problem(9, 23)
    mask = torch.rand(9, 23, generator=torch.Generator().manual_seed(2)) < 0.5
    got = single_prefill_with_kv_cache_return_lse(q, k, v, custom_mask=mask, pos_encoding_mode="ROPE_LLAMA")
    check(got, attend(q, k, v, mask=mask, rope=(1.0, 1e4)))


@pytest.mark.parametrize("where", ["q", "k", "v"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_value_that_is_not_finite_stays_where_it_is_seen(where, value):
    """Rows that see the spoilt key, or whose query is spoilt, become NaN or infinite; all others stay as they are."""
    tensors = dict(zip("qkv", problem(6, 6), strict=True))
    clean = single_prefill_with_kv_cache(**tensors, causal=True)
    tensors[where][3] = value
    spoilt = single_prefill_with_kv_cache(**tensors, causal=True)
    hit = torch.tensor([row == 3 if where == "q" else row >= 3 for row in range(6)])
    assert not torch.isfinite(spoilt[hit]).flatten(1).all(1).any()
    assert torch.equal(spoilt[~hit], clean[~hit])
