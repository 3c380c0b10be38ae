"""The planned wrappers against the definition: every spelling of the tables, layout, variant and dtype."""

import gc

import pytest
import torch
from attention_oracle import attend, paged_batch
from hypothesis import given, settings
from hypothesis import strategies as st

from warploom.attention import (
    AttentionVariant,
    BatchAttention,
    BatchDecodeWithPagedKVCacheWrapper,
    BatchPrefillWithPagedKVCacheWrapper,
    BatchPrefillWithRaggedKVCacheWrapper,
    CUDAGraphBatchDecodeWithPagedKVCacheWrapper,
    fast_decode_plan,
)
from warploom.attention.variants import BUILTIN_VARIANTS
from warploom.core.errors import ArgumentError, PlanError, UnsupportedError
from warploom.core.settings import settings as wl_settings
from warploom.core.testing import assert_close

MIXED = ([3, 1, 0, 6, 1], [7, 20, 5, 6, 0])


def check(got, expected):
    assert_close(got[0], expected[0], what="out")
    # The largest logit and the logarithm of the sum, each up to 8 here and rounded by 2**-24 of it, may cancel.
    assert_close(got[1], expected[1], atol=1e-6, what="lse")


def plan_table(attention, b, **options):
    options = {"causal": True, "dtype_q": b.q.dtype, "dtype_kv": b.k_cache.dtype} | options
    heads, dim = b.q.shape[1:]
    kv_lens = torch.tensor(b.kv_lens, dtype=torch.int32)
    attention.plan(
        b.qo_indptr, kv_lens, options.pop("table", b.block_table), heads, b.k_cache.shape[2], dim,
        b.v_cache.shape[3], page_size=b.page_size, **options,
    )  # fmt: skip


@pytest.mark.parametrize("backend", ["reference", "sdpa", "cutlass"])
@pytest.mark.parametrize("spelling", ["padded", "packed", "indices"])
def test_mixed_requests_in_every_spelling(spelling, backend):
    b = paged_batch(*MIXED)
    attention = BatchAttention(backend=backend)
    if spelling == "indices":
        attention.plan(
            b.qo_indptr, b.kv_indptr, b.kv_indices, torch.tensor(b.kv_lens), 4, 2, 16, 16, 4, causal=True,
            q_data_type=torch.float32, kv_data_type=torch.float32,
        )  # fmt: skip
    else:
        plan_table(attention, b, table=b.block_table if spelling == "padded" else b.kv_indices)
    check(attention.run(b.q, b.cache), b.expected(causal=True))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_random_batches(data):
    batch = data.draw(st.integers(0, 5))
    kv_lens = data.draw(st.lists(st.integers(0, 40), min_size=batch, max_size=batch))
    qo_lens = [data.draw(st.integers(0, 6)) for _ in kv_lens]
    kv_heads, group = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    options = {
        "causal": data.draw(st.booleans()),
        "window_left": data.draw(st.sampled_from([-1, 0, 4])),
        "logits_soft_cap": data.draw(st.sampled_from([0.0, 3.0])),
    }
    b = paged_batch(
        qo_lens, kv_lens, heads=kv_heads * group, kv_heads=kv_heads, dim=data.draw(st.sampled_from([8, 16, 40])),
        value_dim=data.draw(st.sampled_from([None, 24])), page_size=data.draw(st.sampled_from([1, 3, 16, 256])),
    )  # fmt: skip
    attention = BatchAttention()
    plan_table(attention, b, **options)
    check(attention.run(b.q, b.cache), b.expected(**options))


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("joined", [False, True])
def test_layouts_and_forms_of_the_cache(layout, joined):
    b = paged_batch(*MIXED)
    planes = [x if layout == "NHD" else x.transpose(1, 2).contiguous() for x in b.cache]
    attention = BatchAttention(layout)
    plan_table(attention, b)
    check(attention.run(b.q, torch.stack(planes, 1) if joined else tuple(planes)), b.expected(causal=True))


@pytest.mark.parametrize("variant", BUILTIN_VARIANTS, ids=lambda v: v.name)
@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_every_variant(variant, backend):
    qo_lens, kv_lens = MIXED
    b = paged_batch(qo_lens, kv_lens)
    arguments = variant.example(4, qo_lens, kv_lens)
    attention = BatchAttention(backend=backend)
    try:
        plan_table(attention, b, causal=arguments.pop("causal", False), **arguments)
    except UnsupportedError:
        assert variant.name in ("alibi", "soft_cap")
        return
    check(attention.run(b.q, b.cache), b.expected(**meaning(variant.name, arguments, qo_lens, kv_lens)))


def meaning(name, arguments, qo_lens, kv_lens):
    """The example's arguments as the definition takes them."""
    if name == "causal":
        return {"causal": True}
    if name == "sliding_window":
        return {"causal": True, "window_left": arguments["window_left"]}
    if name == "alibi":
        return {"slopes": torch.tensor([2.0 ** (-2 * (i + 1)) for i in range(4)])}
    if name == "rope":
        return {"rope": (arguments["rope_scale"], arguments["rope_theta"])}
    if "custom_mask" in name:
        return {"mask": masks(arguments, qo_lens, kv_lens)}
    return arguments


def masks(arguments, qo_lens, kv_lens):
    """One boolean mask per request out of the flat or packed form."""
    found, first = [], 0
    for m, n in zip(qo_lens, kv_lens, strict=True):
        if "custom_mask" in arguments:
            bits, first = arguments["custom_mask"][first : first + m * n], first + m * n
        else:
            size = -(-m * n // 8)
            data, first = arguments["packed_custom_mask"][first : first + size].tolist(), first + size
            bits = torch.tensor([data[i // 8] >> (i % 8) & 1 for i in range(m * n)], dtype=torch.bool)
        found.append(bits.view(m, n).bool())
    return found


def test_fp8_cache_with_bf16_queries():
    b = paged_batch([2, 1], [9, 30], dtype=torch.bfloat16)
    b.k_cache, b.v_cache = (x.nan_to_num().to(torch.float8_e4m3fn) for x in b.cache)
    attention = BatchAttention()
    plan_table(attention, b)
    out, _ = attention.run(b.q, b.cache, k_scale=0.5, v_scale=2.0)
    reading = [x.float() for x in b.cache]
    b.k_cache, b.v_cache = reading[0] * 0.5, reading[1] * 2.0
    assert_close(out, b.expected(causal=True)[0], dtype=torch.bfloat16)


def test_one_plan_serves_every_layer_and_soft_cap_of_the_call():
    b = paged_batch(*MIXED)
    attention = BatchAttention()
    plan_table(attention, b)
    for seed in range(3):
        other = paged_batch(*MIXED, seed=seed)
        b.q, (b.k_cache, b.v_cache) = other.q, [x.nan_to_num() for x in b.cache]
        check(attention.run(b.q, b.cache), b.expected(causal=True))
    check(attention.run(b.q, b.cache, logits_soft_cap=1.5), b.expected(causal=True, logits_soft_cap=1.5))


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("padded", [False, True])
def test_decode(tokens, padded):
    kv_lens = [9, 0, 33, 4]
    b = paged_batch([tokens] * 4, kv_lens)
    decode = BatchDecodeWithPagedKVCacheWrapper()
    tables = {"block_tables": b.block_table, "seq_lens": torch.tensor(kv_lens)} if padded else {}
    fast_decode_plan(
        decode, b.kv_indptr, b.kv_indices, b.last_page_len, 4, 2, 16, 4, data_type=torch.float32, q_len_per_req=tokens,
        **tables,
    )  # fmt: skip
    check(decode.run_return_lse(b.q, b.cache), b.expected(causal=True))
    check(decode.run(b.q, b.cache, return_lse=True, window_left=2), b.expected(causal=True, window_left=2))
    sinks = torch.randn(4)
    check(decode.forward_return_lse(b.q, b.cache, sinks=sinks), b.expected(causal=True, sinks=sinks))


def test_prefill_paged_and_ragged_agree_with_the_definition():
    b = paged_batch(*MIXED, dim=16, value_dim=8)
    paged = BatchPrefillWithPagedKVCacheWrapper()
    paged.plan(
        b.qo_indptr, b.kv_indptr, b.kv_indices, b.last_page_len, 4, 2, 16, 4, 8, causal=True, q_data_type=torch.float32
    )
    expected = b.expected(causal=True)
    check(paged.run(b.q, b.cache, return_lse=True), expected)
    rows = [b.request(i)[1:] for i in range(5)]
    k, v = (torch.cat([r[j] for r in rows]) for j in (0, 1))
    kv_indptr = torch.tensor([0, *b.kv_lens]).cumsum(0)
    for layout in ("NHD", "HND"):
        ragged = BatchPrefillWithRaggedKVCacheWrapper(kv_layout=layout)
        ragged.plan(b.qo_indptr, kv_indptr, 4, 2, 16, 8, causal=True, q_data_type="float32")
        kv = (k, v) if layout == "NHD" else [x.transpose(0, 1).contiguous() for x in (k, v)]
        check(ragged.run_return_lse(b.q, *kv), expected)


def test_users_variant_in_every_wrapper():
    variant = AttentionVariant(
        name="shift",
        logits="logits + amount * kv_idx",
        scalars={"amount": float},
        reference_logits=lambda logits, at: logits + at.amount * at.kv_idx,
    )
    b = paged_batch([1, 1], [6, 11])
    parts = []
    for i in range(2):
        q, k, v = b.request(i)
        scores = torch.einsum("mhd,nhd->hmn", q.double(), k.double().repeat_interleave(2, 1)) / 4
        weights = (scores + 0.3 * torch.arange(len(k))).softmax(-1)
        parts.append(torch.einsum("hmn,nhd->mhd", weights, v.double().repeat_interleave(2, 1)))
    expected = torch.cat(parts)
    decode = BatchDecodeWithPagedKVCacheWrapper(jit_args=variant)
    decode.plan(b.kv_indptr, b.kv_indices, b.last_page_len, 4, 2, 16, 4, data_type="float32")
    assert_close(decode.run(b.q, b.cache, 0.3), expected)
    batch = BatchAttention()
    plan_table(batch, b, variant=variant)
    assert_close(batch.run(b.q, b.cache, variant_args=(0.3,))[0], expected)
    with pytest.raises(ArgumentError, match="amount"):
        batch.run(b.q, b.cache)


def test_run_before_plan():
    with pytest.raises(PlanError, match=r"call plan\(...\) before run"):
        BatchAttention().run(torch.zeros(1, 4, 16), torch.zeros(1, 2, 4, 2, 16))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"dtype_q": "int8"}, ArgumentError, "q_data_type"),
        ({"page_size": 0}, ArgumentError, "page_size"),
        ({"table": torch.zeros(3, 1, dtype=torch.int32)}, ArgumentError, "batch"),
        ({"table": torch.zeros(5, 1, dtype=torch.int32)}, ArgumentError, "at least"),
        ({"table": torch.zeros(2, 2, 2, dtype=torch.int32)}, ArgumentError, "3-D"),
        ({"colour": 1}, ArgumentError, "colour"),
        ({"sinks": torch.zeros(3)}, ArgumentError, "sinks"),
        ({"custom_mask": torch.zeros(7, dtype=torch.bool)}, ArgumentError, "custom_mask"),
    ],
)
def test_bad_plans(change, error, message):
    b = paged_batch(*MIXED)
    if "page_size" in change:
        b.page_size = change.pop("page_size")
    with pytest.raises(error, match=message):
        plan_table(BatchAttention(), b, **change)


def test_refused_plan_prints_the_table():
    with pytest.raises(UnsupportedError, match="soft cap"):
        plan_table(BatchAttention(backend="sdpa"), paged_batch(*MIXED), logits_soft_cap=1.0)


@pytest.mark.parametrize(
    ("q", "cache", "message"),
    [
        ((10, 4, 16), (3, 2, 4, 2, 16), "11 rows"),
        ((11, 5, 16), (3, 2, 4, 2, 16), "num_qo_heads = 4"),
        ((11, 4, 16), (3, 2, 8, 2, 16), "page_size = 4"),
        ((11, 4, 16), (3, 2, 4, 3, 16), "num_kv_heads = 2"),
        ((11, 4, 16), (3, 4, 2, 16), r"\[pages"),
        ((11, 4, 16), (3, 2, 4, 2, 16), "page indices from 0 to 2"),
    ],
)
def test_bad_runs(q, cache, message):
    b = paged_batch(*MIXED)
    attention = BatchAttention()
    plan_table(attention, b)
    with pytest.raises(ArgumentError, match=message):
        attention.run(torch.zeros(q), torch.zeros(cache))


def test_dtype_of_the_cache_must_be_the_planned_one():
    b = paged_batch(*MIXED)
    attention = BatchAttention()
    plan_table(attention, b)
    with pytest.raises(ArgumentError, match="float32 as planned"):
        attention.run(b.q, tuple(x.half() for x in b.cache))


def test_graph_mode_keeps_its_tensors_and_refuses_more():
    buffers = [torch.zeros(n, dtype=torch.int32) for n in (5, 16, 4)]
    decode = CUDAGraphBatchDecodeWithPagedKVCacheWrapper(None, *buffers)

    def plan(kv_lens):
        b = paged_batch([1] * len(kv_lens), kv_lens)
        decode.plan(b.kv_indptr, b.kv_indices, b.last_page_len, 4, 2, 16, 4, data_type="float32")
        return b

    b = plan([3, 9])
    fixed = decode.planned().tables.page_indices
    padded = torch.cat([b.q, torch.zeros(2, 4, 16)])
    out, lse = decode.run_return_lse(padded, b.cache)
    expected = b.expected()
    check((out[:2], lse[:2]), expected)
    assert (out[2:] == 0).all()
    assert (lse[2:] == -torch.inf).all()
    b = plan([17, 1, 8])
    assert decode.planned().tables.page_indices.data_ptr() == fixed.data_ptr() == buffers[1].data_ptr()
    out = decode.run(torch.cat([b.q, torch.zeros(1, 4, 16)]), b.cache)
    assert_close(out[:3], b.expected()[0])
    with pytest.raises(PlanError, match="5 requests exceed the captured maximum of 4"):
        plan([1] * 5)
    with pytest.raises(PlanError, match="pages exceed"):
        plan([80])


def test_changing_tensors_in_place_between_runs_of_a_plan_is_refused_or_right_under_debug():
    b = paged_batch([1, 1], [6, 9])
    with wl_settings.override(debug_checks=True):
        attention = BatchAttention()
        plan_table(attention, b)
        check(attention.run(b.q, b.cache), b.expected())


def test_workspace_size_and_explain():
    b = paged_batch(*MIXED)
    size = BatchAttention().workspace_size(4, 2, 16, 4)
    attention = BatchAttention(workspace=torch.zeros(max(size, 1), dtype=torch.uint8))
    plan_table(attention, b)
    text = str(attention.explain())
    assert "taken: reference" in text
    assert "decode" in text
    assert "append" in text


def test_compiles_in_one_graph_and_survives_a_new_plan():
    b = paged_batch([1, 1], [6, 9])
    attention = BatchAttention()
    plan_table(attention, b)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def layer(q, k, v):
        out, lse = attention.run(q * 1.0, (k, v))
        return out + 0.0, lse

    check(layer(b.q, *b.cache), b.expected())
    other = paged_batch([1, 1], [11, 2], seed=3)
    plan_table(attention, other)
    pages = max(len(b.k_cache), len(other.k_cache))
    cache = [torch.cat([x, torch.zeros(pages - len(x), *x.shape[1:])]) for x in other.cache]
    check(layer(other.q, *cache), other.expected())


def test_wrappers_are_collected():
    from warploom.attention.calls import PLANNED

    handle = BatchAttention()._handle
    gc.collect()
    with pytest.raises(PlanError, match="gone"):
        PLANNED[handle]


def test_the_first_program_of_the_interface():
    """Single functions and the batch wrapper as users write them, on half precision."""
    k, v = torch.randn(64, 4, 32).half(), torch.randn(64, 4, 32).half()
    q = torch.randn(4, 32).half()
    import warploom

    assert_close(warploom.single_decode_with_kv_cache(q, k, v), attend(q[None], k, v)[0][0], dtype=torch.float16)
    q = torch.randn(8, 4, 32).half()
    got = warploom.single_prefill_with_kv_cache(q, k, v, causal=True, pos_encoding_mode="ROPE_LLAMA")
    assert_close(got, attend(q, k, v, causal=True, rope=(1.0, 1e4))[0], dtype=torch.float16)


def test_prefill_in_graph_mode():
    prefill = BatchPrefillWithPagedKVCacheWrapper(use_cuda_graph=True)

    def plan(qo_lens, kv_lens):
        b = paged_batch(qo_lens, kv_lens)
        tables = b.qo_indptr, b.kv_indptr, b.kv_indices, b.last_page_len
        prefill.plan(*tables, 4, 2, 16, 4, causal=True, q_data_type="float32")
        return b

    b = plan([3, 4], [9, 20])
    check(prefill.run_return_lse(b.q, b.cache), b.expected(causal=True))
    b = plan([1, 2], [5, 7])
    padded = torch.cat([b.q, torch.full((4, 4, 16), torch.nan)])
    out, lse = prefill.run_return_lse(padded, b.cache)
    check((out[:3], lse[:3]), b.expected(causal=True))
    assert (out[3:] == 0).all()
    with pytest.raises(PlanError, match="9 rows of queries exceed the captured maximum of 7"):
        plan([5, 4], [5, 7])
    with pytest.raises(PlanError, match="3 requests exceed"):
        plan([1, 1, 1], [1, 1, 1])


def test_graph_mode_needs_queries_for_the_largest_batch():
    buffers = [torch.zeros(n, dtype=torch.int32) for n in (5, 16, 4)]
    decode = CUDAGraphBatchDecodeWithPagedKVCacheWrapper(None, *buffers)
    b = paged_batch([1, 1], [3, 9])
    decode.plan(b.kv_indptr, b.kv_indices, b.last_page_len, 4, 2, 16, 4, data_type="float32")
    with pytest.raises(PlanError, match="4 requests of 1, got 2 rows"):
        decode.run(b.q, b.cache)


@pytest.mark.parametrize(
    ("buffers", "message"),
    [
        ({"qo_indptr_buf": 3, "paged_kv_indptr_buf": 4}, "qo_indptr buffer"),
        ({"paged_kv_indices_buf": torch.zeros(9)}, "dtype torch.int32"),
    ],
)
def test_bad_graph_buffers(buffers, message):
    buffers = {k: torch.zeros(v, dtype=torch.int32) if isinstance(v, int) else v for k, v in buffers.items()}
    prefill = BatchPrefillWithPagedKVCacheWrapper(use_cuda_graph=True, **buffers)
    b = paged_batch([1, 1], [3, 9])
    with pytest.raises(ArgumentError, match=message):
        prefill.plan(b.qo_indptr, b.kv_indptr, b.kv_indices, b.last_page_len, 4, 2, 16, 4)


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_strided_queries_and_caches(backend):
    """A slice of a fused projection, and caches inside a larger allocation with gaps of NaN."""
    b = paged_batch(*MIXED)
    fused = torch.full((len(b.q), 4, 48), torch.nan)
    fused[..., 16:32] = b.q
    storage = torch.full((2 * len(b.k_cache), 4, 5, 24), torch.nan)
    storage[::2, :, 1:3, 8:] = b.k_cache
    attention = BatchAttention(backend=backend)
    plan_table(attention, b)
    check(attention.run(fused[..., 16:32], (storage[::2, :, 1:3, 8:], b.v_cache)), b.expected(causal=True))


def test_numpy_tables_queries_and_sizes():
    b = paged_batch(*MIXED)
    attention = BatchAttention()
    tables = [x.numpy() for x in (b.qo_indptr, b.kv_indptr, b.kv_indices)]
    kv_lens = torch.tensor(b.kv_lens).numpy()
    heads, dim = b.qo_indptr.numpy()[1:2].astype("int64")[0] + 1, 16  # a NumPy integer: 4
    attention.plan(*tables, kv_lens, heads, 2, dim, dim, 4, causal=True, q_data_type="float32")
    check(attention.run(b.q.numpy(), tuple(x.numpy() for x in b.cache)), b.expected(causal=True))
    attention.plan(
        tables[0], kv_lens, b.block_table.numpy(), heads, 2, dim, dtype_q="float32", page_size=4, causal=True
    )
    check(attention.run(b.q.numpy(), tuple(x.numpy() for x in b.cache)), b.expected(causal=True))


def test_results_do_not_depend_on_the_batch_around():
    b = paged_batch([1, 3, 2], [300, 70, 11], page_size=16)
    whole = BatchAttention()
    plan_table(whole, b, deterministic=True)
    out = whole.run(b.q, b.cache)[0]
    alone = BatchAttention()
    alone.plan(
        torch.tensor([0, 3]), torch.tensor([70]), b.block_table[1:2], 4, 2, 16, dtype_q="float32", page_size=16,
        causal=True, deterministic=True,
    )  # fmt: skip
    assert torch.equal(alone.run(b.q[1:4], b.cache)[0], out[1:4])


def test_cutlass_says_who_computes_on_the_cpu():
    attention = BatchAttention(backend="cutlass")
    plan_table(attention, paged_batch(*MIXED))
    text = str(attention.explain())
    assert "taken: cutlass" in text
    assert "on CPU tensors the reference computes" in text
