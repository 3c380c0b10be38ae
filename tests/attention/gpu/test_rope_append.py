"""The kernel of `rope_append.cuh`, against the definition, every byte around what it writes, and the two operators."""

import pytest
import torch
from append_problems import caches_of, make_append, memory, with_own_memory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rope_append_problems import assert_rotated_and_appended

from warploom.attention import append_paged_kv_cache, apply_rope_append_paged_kv_cache, apply_rope_pos_ids
from warploom.attention.rope_append import ROPE_APPEND
from warploom.core.errors import ArgumentError
from warploom.core.settings import settings as wl_settings
from warploom.core.testing import assert_close, cases, indptr_of, poison_like, random_normal

pytestmark = pytest.mark.gpu(min_arch=80)

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def check(append, **options):
    assert_rotated_and_appended(append, backend="cuda", **options)


@pytest.mark.parametrize(
    *cases(
        layout=["NHD", "HND"], one_tensor=[True, False], page_size=[1, 7, 16, 256],
        dtype=[torch.float32, torch.float16, torch.bfloat16],
    )
)  # fmt: skip
def test_tokens_are_rotated_and_land_on_their_pages(case):
    check(make_append([5, 0, 1, 40], [0, 3, 16, 250], device="cuda", **vars(case)))


@pytest.mark.parametrize(
    *cases(
        dtype=[torch.bfloat16, torch.float16, torch.float32], interleave=[False, True],
        cache_dtype=[E4M3, E5M2, torch.bfloat16, torch.float16, torch.float32],
    )
)  # fmt: skip
def test_keys_and_values_become_the_dtype_of_the_cache(case):
    append = make_append([5, 30], [0, 2], dtype=case.dtype, cache_dtype=case.cache_dtype, device="cuda")
    check(append, interleave=case.interleave)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_problems(data):
    lens = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=6))
    head_dim = data.draw(st.sampled_from([8, 20, 36, 64, 80, 128, 256]))
    append = make_append(
        lens,
        [data.draw(st.integers(0, 3000)) for _ in lens],
        dtype=data.draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32])),
        cache_dtype=data.draw(st.sampled_from([None, None, E4M3, E5M2, torch.bfloat16])),
        heads=data.draw(st.sampled_from([1, 3, 8])),
        head_dim=head_dim,
        page_size=data.draw(st.sampled_from([1, 3, 16, 64])),
        layout=data.draw(st.sampled_from(["NHD", "HND"])),
        strided=data.draw(st.sampled_from([0, 0, 1, 8])),
        padding=data.draw(st.sampled_from([0, 7])),
        seed=data.draw(st.integers(0, 999)),
        device="cuda",
    )
    q = random_normal(
        (len(append.rows[0]), data.draw(st.integers(1, 40)), head_dim), append.rows[0].dtype, device="cuda"
    )
    check(
        append,
        q=q,
        out=data.draw(st.sampled_from([None, "q"])),
        rotary_dim=data.draw(st.sampled_from([None, None, 2, head_dim // 4 * 2])),
        interleave=data.draw(st.booleans()),
        rope_theta=data.draw(st.sampled_from([1e4, 5e5])),
        rope_scale=data.draw(st.sampled_from([1.0, 4.0])),
    )


@pytest.mark.parametrize("llama31", [False, True])
@pytest.mark.parametrize("cache_dtype", [None, E4M3])
def test_as_the_reference(llama31, cache_dtype):
    sizes = {"heads": 8, "head_dim": 128, "dtype": torch.bfloat16, "cache_dtype": cache_dtype, "padding": 5}
    append = make_append([700, 1, 1, 90], [0, 9000, 77, 4], device="cuda", **sizes)
    q = random_normal((len(append.rows[0]), 32, 128), torch.bfloat16, device="cuda")
    copies = tuple(with_own_memory(cache) for cache in caches_of(append))
    tables = append.kv_indices, append.kv_indptr, append.last_page_len, append.layout
    options = {"rope_scale": 8.0, "rope_theta": 5e5, "old_context_len": 8192 if llama31 else 0}
    rows = q, *append.rows, append.positions, append.requests
    got = apply_rope_append_paged_kv_cache(*rows, append.cache, *tables, **options)
    assert ROPE_APPEND.last.name == "cuda"
    same = copies if len(copies) == 2 else copies[0]
    want = apply_rope_append_paged_kv_cache(*rows, same, *tables, **options, backend="reference")
    assert_close(got, want, rtol=2**-7, atol=2**-8, what="queries")
    rtol, atol = (2**-2, 2**-9) if cache_dtype else (2**-7, 2**-8)  # a place further on, where roundings differ
    for cache, copy in zip(caches_of(append), copies, strict=True):
        assert_close(cache.float(), copy.float(), rtol=rtol, atol=atol, what="cache")


def test_as_the_two_kernels():
    append = make_append(
        [33, 5], [0, 100], dtype=torch.bfloat16, cache_dtype=E4M3, heads=8, head_dim=128, device="cuda"
    )
    q = random_normal((38, 32, 128), torch.bfloat16, device="cuda")
    copies = tuple(with_own_memory(cache) for cache in caches_of(append))
    tables = append.kv_indices, append.kv_indptr, append.last_page_len, append.layout
    q_rope, k_rope = apply_rope_pos_ids(q, append.rows[0], append.positions, backend="cuda")
    same = copies if len(copies) == 2 else copies[0]
    append_paged_kv_cache(k_rope, append.rows[1], append.requests, append.positions, same, *tables, backend="cuda")
    rows = q, *append.rows, append.positions, append.requests
    assert torch.equal(apply_rope_append_paged_kv_cache(*rows, append.cache, *tables, backend="cuda"), q_rope)
    for cache, copy in zip(caches_of(append), copies, strict=True):
        assert torch.equal(memory(cache), memory(copy))


def test_padding_passes_and_nothing_is_read_or_written():
    append = make_append([0, 0], [3, 0], padding=50, device="cuda")
    append.kv_indices.fill_(2**31 - 1)
    append.kv_indptr.fill_(2**31 - 1)
    before = [memory(cache).clone() for cache in caches_of(append)]
    q = random_normal((50, 4, 64), torch.float16, device="cuda")
    q[0, 0, 0] = torch.inf
    tables = append.kv_indices, append.kv_indptr, append.last_page_len, append.layout
    where = append.positions, append.requests
    got = apply_rope_append_paged_kv_cache(q, *append.rows, *where, append.cache, *tables, backend="cuda")
    assert torch.equal(got, q)
    for cache, want in zip(caches_of(append), before, strict=True):
        assert torch.equal(memory(cache), want)


def test_one_tensor_of_queries_keys_and_values_in_place():
    append = make_append([9, 3], [0, 40], heads=2, head_dim=128, dtype=torch.bfloat16, device="cuda")
    qkv = random_normal((12, 8 + 2 + 2, 128), torch.bfloat16, device="cuda")
    append.rows = qkv[:, 8:10], qkv[:, 10:]
    check(append, q=qkv[:, :8], out="q")


def test_a_step_in_a_graph():
    append = make_append([1] * 4, [10, 200, 0, 63], heads=2, head_dim=64, device="cuda", spare_pages=8)
    q, out = random_normal((4, 8, 64), torch.float16, device="cuda"), poison_like(append.rows[0].repeat(1, 4, 1))
    tables = append.kv_indices, append.kv_indptr, append.last_page_len, append.layout

    def run():
        where = append.positions, append.requests
        apply_rope_append_paged_kv_cache(q, *append.rows, *where, append.cache, *tables, out=out)

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    append.positions.copy_(torch.tensor([0, 207, 15, 60]))
    q.copy_(random_normal((4, 8, 64), torch.float16, seed=5, device="cuda"))
    graph.replay()
    replayed, cache = out.clone(), memory(append.cache).clone()
    memory(append.cache).zero_()
    run()
    assert torch.equal(replayed, out)
    assert (memory(append.cache) == cache)[memory(append.cache) != 0].all()


def test_cache_offsets_past_int32():
    free, _ = torch.cuda.mem_get_info()
    if free < 12 * 2**30:
        pytest.skip(f"needs 12 GiB of GPU memory, {free / 2**30:.1f} are free")
    pages = 2**31 // (2 * 16 * 8 * 128) + 1000  # elements pass 2^31
    cache = torch.zeros(pages, 2, 16, 8, 128, dtype=torch.bfloat16, device="cuda")
    rows = random_normal((32, 8, 128), torch.bfloat16, device="cuda")
    requests, where = (x.int().cuda() for x in (torch.zeros(32), torch.arange(32)))
    table = torch.tensor([pages - 1, pages - 2]).int().cuda(), indptr_of([2], "cuda"), requests[:1] + 16
    q = apply_rope_append_paged_kv_cache(rows, rows, rows * 2, where, requests, cache, *table, backend="cuda")
    assert torch.equal(cache[-1, 0], q[:16])
    assert torch.equal(cache[-2, 1], rows[16:] * 2)
    assert not cache[:-2].any()


def test_places_under_debug_checks():
    append = make_append([4], [0], device="cuda")
    append.positions[3] = 900
    tables = append.kv_indices, append.kv_indptr, append.last_page_len, append.layout
    rows = append.rows[0], *append.rows, append.positions, append.requests
    with wl_settings.override(debug_checks=True), pytest.raises(ArgumentError, match="within the 1 pages"):
        apply_rope_append_paged_kv_cache(*rows, append.cache, *tables)
