"""Shared prefixes: the tree of levels equals attention over each request's whole key sequence."""

import pytest
import torch
from attention_oracle import attend

from warploom.attention import (
    BatchDecodeWithSharedPrefixPagedKVCacheWrapper,
    BatchPrefillWithSharedPrefixPagedKVCacheWrapper,
    MultiLevelCascadeAttentionWrapper,
)
from warploom.core.errors import ArgumentError, PlanError, UnsupportedError
from warploom.core.testing import assert_close

PAGE, HEADS, KV_HEADS, DIM = 4, 4, 2, 16


def rows(count, heads, seed):
    return torch.randn(count, heads, DIM, generator=torch.Generator().manual_seed(seed))


def store(cache, first, keys, values):
    """Put rows into consecutive pages; returns their numbers and the last page's length."""
    count = -(-len(keys) // PAGE)
    for plane, part in ((0, keys), (1, values)):
        for i in range(len(part)):
            cache[first + i // PAGE, plane, i % PAGE] = part[i]
    return list(range(first, first + count)), (len(keys) - 1) % PAGE + 1 if count else 0


def ints(*values):
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize("own_lens", [[3, 1, 9], [2, 0, 5]])
@pytest.mark.parametrize("causal", [False, True])
def test_two_levels(own_lens, causal):
    cache = torch.full((20, 2, PAGE, KV_HEADS, DIM), torch.nan)
    prefix = rows(10, KV_HEADS, 1), rows(10, KV_HEADS, 2)
    shared, shared_last = store(cache, 0, *prefix)
    pages, lasts, owns, first = [], [], [], 5
    for i, n in enumerate(own_lens):
        own = rows(n, KV_HEADS, 10 + i), rows(n, KV_HEADS, 20 + i)
        mine, last = store(cache, first, *own)
        first += len(mine)
        pages.append(mine), lasts.append(last), owns.append(own)
    qo_lens = [min(2, n) if n else 1 for n in own_lens]
    q = rows(sum(qo_lens), HEADS, 3)
    offsets = torch.tensor([0, *qo_lens]).cumsum(0).int()
    cascade = MultiLevelCascadeAttentionWrapper(2)
    cascade.plan(
        [ints(0, len(q)), offsets],
        [ints(0, len(shared)), torch.tensor([0, *map(len, pages)]).cumsum(0).int()],
        [ints(*shared), ints(*(page for mine in pages for page in mine))],
        [ints(shared_last), ints(*lasts)],
        HEADS, KV_HEADS, DIM, PAGE, causal=causal, q_data_type="float32",
    )  # fmt: skip
    out, lse = cascade.run(q, cache, return_lse=True)
    for i, (k, v) in enumerate(owns):
        mine = slice(int(offsets[i]), int(offsets[i + 1]))
        full = [torch.cat([a, b]) for a, b in zip(prefix, (k, v), strict=True)]
        if own_lens[i] == 0 and causal:
            expected = attend(q[mine], *prefix)  # no keys of its own: the prefix alone, all of it in the past
        else:
            expected = attend(q[mine], *full, causal=causal)
        assert_close(out[mine], expected[0])
        assert_close(lse[mine], expected[1])


def test_one_level_for_each_list():
    with pytest.raises(ArgumentError, match="one for each level"):
        MultiLevelCascadeAttentionWrapper(2).plan([ints(0, 1)], [], [], [], 4, 2, 16, 4)
    with pytest.raises(ArgumentError, match="1 or more"):
        MultiLevelCascadeAttentionWrapper(0)


@pytest.mark.parametrize("kind", ["decode", "prefill"])
@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_shared_prefix_in_contiguous_memory(kind, layout):
    cache = torch.full((8, 2, PAGE, KV_HEADS, DIM), torch.nan)
    prefix = rows(7, KV_HEADS, 1), rows(7, KV_HEADS, 2)
    own = [(rows(n, KV_HEADS, 5 + n), rows(n, KV_HEADS, 9 + n)) for n in (3, 6)]
    (first, last_a), (second, last_b) = store(cache, 0, *own[0]), store(cache, 3, *own[1])
    qo_lens = [1, 1] if kind == "decode" else [2, 3]
    q = rows(sum(qo_lens), HEADS, 4)
    table = ints(0, 1, 3), ints(*first, *second), ints(last_a, last_b)
    if kind == "decode":
        wrapper = BatchDecodeWithSharedPrefixPagedKVCacheWrapper(kv_layout=layout)
        wrapper.begin_forward(*table, HEADS, KV_HEADS, DIM, PAGE, data_type="float32")
    else:
        wrapper = BatchPrefillWithSharedPrefixPagedKVCacheWrapper(kv_layout=layout)
        offsets = ints(0, 2, 5)
        wrapper.begin_forward(offsets, *table, HEADS, KV_HEADS, DIM, PAGE, causal=True, q_data_type="float32")
    hnd = layout == "HND"
    shared = [x.transpose(0, 1).contiguous() if hnd else x for x in prefix]
    out = wrapper.forward(q, *shared, cache.transpose(2, 3).contiguous() if hnd else cache)
    begin = 0
    for m, (k, v) in zip(qo_lens, own, strict=True):
        full = [torch.cat([a, b]) for a, b in zip(prefix, (k, v), strict=True)]
        assert_close(out[begin : begin + m], attend(q[begin : begin + m], *full, causal=True)[0])
        begin += m


def test_forward_before_begin_forward():
    wrapper = BatchDecodeWithSharedPrefixPagedKVCacheWrapper()
    with pytest.raises(PlanError, match="begin_forward"):
        wrapper.forward(*[torch.zeros(1, 4, 16)] * 3, torch.zeros(1, 2, 4, 2, 16))


def three_levels():
    """Four requests of one token: all share 8 keys, pairs share 4 more, each has its own 1 to 4."""
    cache = torch.randn(12, 2, PAGE, KV_HEADS, DIM, generator=torch.Generator().manual_seed(0))
    tables = (
        [ints(0, 4), ints(0, 2, 4), ints(0, 1, 2, 3, 4)],
        [ints(0, 2), ints(0, 1, 2), ints(0, 1, 2, 3, 4)],
        [ints(0, 1), ints(2, 3), ints(4, 5, 6, 7)],
        [ints(4), ints(4, 4), ints(1, 2, 3, 4)],
    )
    pages = [[0, 1, 2, 4], [0, 1, 2, 5], [0, 1, 3, 6], [0, 1, 3, 7]]
    keys = [[cache[page, plane].flatten(0, 1)[: 12 + i + 1] for plane in (0, 1)] for i, page in enumerate(pages)]
    return cache, tables, keys


def test_three_levels_into_the_callers_buffers():
    cache, tables, keys = three_levels()
    q = rows(4, HEADS, 3)
    cascade = MultiLevelCascadeAttentionWrapper(3)
    cascade.plan(*tables, HEADS, KV_HEADS, DIM, PAGE, q_data_type="float32", lse_base="e", logits_soft_cap=2.0)
    out, lse = torch.full((4, HEADS, DIM), torch.nan), torch.full((4, HEADS), torch.nan)
    assert cascade.run(q, cache, out=out, lse=lse) is out
    for i, (k, v) in enumerate(keys):
        expected = attend(q[i : i + 1], k, v, logits_soft_cap=2.0)
        assert_close(out[i : i + 1], expected[0])
        assert_close(lse[i : i + 1] / torch.log(torch.tensor(2.0)), expected[1])


@pytest.mark.parametrize("causal", [False, True])
def test_tables_with_pages_to_spare(causal):
    """Page numbers beyond the last offset of a level are nobody's."""
    cache, (offsets, counts, indices, lasts), keys = three_levels()
    q = rows(4, HEADS, 3)
    spare = [torch.cat([x, ints(99, -1)]) for x in indices]
    cascade = MultiLevelCascadeAttentionWrapper(3)
    cascade.plan(offsets, counts, spare, lasts, HEADS, KV_HEADS, DIM, PAGE, causal=causal, q_data_type="float32")
    out = cascade.run(q, cache)
    for i, (k, v) in enumerate(keys):
        assert_close(out[i : i + 1], attend(q[i : i + 1], k, v)[0])


def test_levels_run_together_unless_the_last_is_causal():
    cache, tables, _ = three_levels()
    cascade = MultiLevelCascadeAttentionWrapper(3)
    with pytest.raises(PlanError, match="call plan"):
        cascade.run(rows(4, HEADS, 3), cache)
    cascade.plan(*tables, HEADS, KV_HEADS, DIM, PAGE, q_data_type="float32")
    assert list(cascade.explain().lengths) == [
        (4, 8),
        (2, 4),
        (2, 4),
        (1, 1),
        (1, 2),
        (1, 3),
        (1, 4),
    ]
    cascade.plan(*tables, HEADS, KV_HEADS, DIM, PAGE, q_data_type="float32", causal=True)
    assert list(cascade.explain().lengths) == [(4, 8), (2, 4), (2, 4)]


def test_parts_are_merged_before_they_are_rounded():
    cache, tables, keys = three_levels()
    q = rows(4, HEADS, 3).bfloat16()
    cascade = MultiLevelCascadeAttentionWrapper(3)
    cascade.plan(*tables, HEADS, KV_HEADS, DIM, PAGE, q_data_type="bfloat16", o_data_type="float32")
    out = cascade.run(q, cache.bfloat16())
    assert out.dtype == torch.float32
    k, v = (x.bfloat16() for x in keys[0])
    assert_close(out[:1], attend(q[:1], k, v)[0], dtype=torch.bfloat16)
    with pytest.raises(ArgumentError, match="out"):
        cascade.run(q, cache.bfloat16(), out=torch.empty(4, HEADS, DIM, dtype=torch.bfloat16))


def test_every_level_has_the_same_queries():
    _, (offsets, *others), _ = three_levels()
    with pytest.raises(ArgumentError, match="as many queries in every level"):
        MultiLevelCascadeAttentionWrapper(3).plan(
            [ints(0, 3), *offsets[1:]], *others, HEADS, KV_HEADS, DIM, PAGE, q_data_type="float32"
        )


def test_custom_masks_are_of_the_last_level():
    cache, tables, keys = three_levels()
    q = rows(4, HEADS, 3)
    own = torch.tensor([True, False, True, False, False, True, False, True, True, True])  # 1 + 2 + 3 + 4 keys
    cascade = MultiLevelCascadeAttentionWrapper(3)
    cascade.plan(*tables, HEADS, KV_HEADS, DIM, PAGE, q_data_type="float32", custom_mask=own)
    out = cascade.run(q, cache)
    for i, (k, v) in enumerate(keys):
        mask = torch.cat([torch.ones(12, dtype=torch.bool), own[i * (i + 1) // 2 :][: i + 1]])
        assert_close(out[i : i + 1], attend(q[i : i + 1], k, v, mask=mask[None])[0])


def test_compiles_in_one_graph():
    cache, tables, keys = three_levels()
    cascade = MultiLevelCascadeAttentionWrapper(3)
    cascade.plan(*tables, HEADS, KV_HEADS, DIM, PAGE, q_data_type="float32")
    q = rows(4, HEADS, 3)
    compiled = torch.compile(lambda q: cascade.run(q * 1.0, cache) + 0.0, fullgraph=True, backend="aot_eager")
    assert_close(compiled(q)[:1], attend(q[:1], *keys[0])[0])


@pytest.mark.parametrize(
    "option", [{"window_left": 3}, {"pos_encoding_mode": "ALIBI"}, {"pos_encoding_mode": "ROPE_LLAMA"}], ids=str
)
def test_options_that_need_positions_over_all_levels_are_refused(option):
    _, tables, _ = three_levels()
    with pytest.raises(UnsupportedError, match="BatchAttention"):
        MultiLevelCascadeAttentionWrapper(3).plan(*tables, HEADS, KV_HEADS, DIM, PAGE, **option)
    shared = BatchDecodeWithSharedPrefixPagedKVCacheWrapper()
    with pytest.raises(UnsupportedError, match="BatchAttention"):
        shared.begin_forward(ints(0, 1), ints(0), ints(1), HEADS, KV_HEADS, DIM, PAGE, **option)


def test_options_that_say_the_default_are_taken_and_sinks_refused():
    cache, tables, _ = three_levels()
    cascade = MultiLevelCascadeAttentionWrapper(3)
    cascade.plan(*tables, HEADS, KV_HEADS, DIM, PAGE, q_data_type="float32", window_left=-1, pos_encoding_mode="NONE")
    with pytest.raises(UnsupportedError, match="sinks"):
        cascade.run(rows(4, HEADS, 3), cache, sinks=torch.zeros(HEADS))


def test_shared_prefix_scales_and_buffers():
    cache = torch.randn(2, 2, PAGE, KV_HEADS, DIM, generator=torch.Generator().manual_seed(0))
    prefix = rows(7, KV_HEADS, 1), rows(7, KV_HEADS, 2)
    q = rows(1, HEADS, 4)
    wrapper = BatchDecodeWithSharedPrefixPagedKVCacheWrapper()
    wrapper.begin_forward(ints(0, 1), ints(1), ints(3), HEADS, KV_HEADS, DIM, PAGE, data_type="float32")
    out, lse = torch.empty(1, HEADS, DIM), torch.empty(1, HEADS)
    got = wrapper.forward(q, *prefix, cache, k_scale=0.5, v_scale=3.0, out=out, lse=lse, return_lse=True)
    assert got[0] is out
    assert got[1] is lse
    k, v = (torch.cat([x, cache[1, plane, :3]]) for plane, x in enumerate(prefix))
    expected = attend(q, k * 0.5, v * 3.0)
    assert_close(out, expected[0])
    assert_close(lse, expected[1])
