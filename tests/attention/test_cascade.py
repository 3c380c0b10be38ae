"""Shared prefixes: the tree of levels equals attention over each request's whole key sequence."""

import pytest
import torch
from attention_oracle import attend

from warploom.attention import (
    BatchDecodeWithSharedPrefixPagedKVCacheWrapper,
    BatchPrefillWithSharedPrefixPagedKVCacheWrapper,
    MultiLevelCascadeAttentionWrapper,
)
from warploom.core.errors import ArgumentError, PlanError
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
