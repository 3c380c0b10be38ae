"""Rotation and append in one call."""

import pytest
import torch
from append_problems import caches_of, make_append, memory, with_own_memory
from hypothesis import given, settings
from hypothesis import strategies as st
from rope_append_problems import assert_rotated_and_appended

from warploom.attention import (
    append_paged_kv_cache,
    apply_llama31_rope_pos_ids,
    apply_rope_append_paged_kv_cache,
    apply_rope_pos_ids,
)
from warploom.attention.problems.rope_append import RopeAppendProblem
from warploom.attention.rope_append import ROPE_APPEND
from warploom.core.errors import ArgumentError, UnsupportedError
from warploom.core.testing import cases, poison_like, random_normal

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def call(append, q, **options):
    tables = append.kv_indices, append.kv_indptr, append.last_page_len
    where = append.positions, append.requests
    return apply_rope_append_paged_kv_cache(q, *append.rows, *where, append.cache, *tables, append.layout, **options)


def queries(append, heads=6):
    k = append.rows[0]
    return random_normal((len(k), heads, k.shape[2]), k.dtype, seed=9, device=k.device)


@pytest.mark.parametrize(
    *cases(
        layout=["NHD", "HND"], one_tensor=[True, False], page_size=[1, 7, 16],
        dtype=[torch.float32, torch.float16, torch.bfloat16],
    )
)  # fmt: skip
def test_tokens_are_rotated_and_land_on_their_pages(case):
    append = make_append([5, 0, 1, 40], [0, 3, 16, 250], **vars(case))
    assert_rotated_and_appended(append, backend="reference")


@pytest.mark.parametrize(*cases(rotary_dim=[None, 2, 12, 16], interleave=[False, True], out=[None, "q"]))
def test_pairs_and_partial_rotation(case):
    append = make_append([3, 9], [0, 30], head_dim=16, padding=4)
    assert_rotated_and_appended(append, backend="reference", **vars(case), rope_theta=5e5, rope_scale=2.0)


@pytest.mark.parametrize(
    ("dtype", "cache_dtype"),
    [(torch.bfloat16, E4M3), (torch.float16, E5M2), (torch.float32, E4M3), (torch.float32, torch.bfloat16)],
)
def test_keys_and_values_become_the_dtype_of_the_cache(dtype, cache_dtype):
    append = make_append([5, 3], [0, 20], dtype=dtype, cache_dtype=cache_dtype, page_size=4)
    assert_rotated_and_appended(append, backend="reference")


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_it_is_the_two_operators_one_after_the_other(data):
    lens = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=5))
    before = [data.draw(st.integers(0, 100)) for _ in lens]
    dtype = data.draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
    append = make_append(
        lens, before, dtype=dtype, cache_dtype=data.draw(st.sampled_from([None, E4M3, torch.bfloat16])),
        page_size=data.draw(st.sampled_from([1, 3, 16])), head_dim=16, strided=data.draw(st.sampled_from([0, 3])),
        layout=data.draw(st.sampled_from(["NHD", "HND"])), seed=data.draw(st.integers(0, 99)),
    )  # fmt: skip
    q = queries(append)
    if llama31 := data.draw(st.booleans()):
        options = {"rope_scale": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0, "old_context_len": 64}
    else:
        options = {"rope_scale": 0.5, "rope_theta": 100.0}
    apply = apply_llama31_rope_pos_ids if llama31 else apply_rope_pos_ids
    if llama31:
        options["rope_theta"] = 1e5
    q_rope, k_rope = apply(q, append.rows[0], append.positions, interleave=True, **options)
    copies = tuple(with_own_memory(cache) for cache in caches_of(append))
    separate = copies if len(copies) == 2 else copies[0]
    tables = append.kv_indices, append.kv_indptr, append.last_page_len
    append_paged_kv_cache(k_rope, append.rows[1], append.requests, append.positions, separate, *tables, append.layout)
    assert torch.equal(call(append, q, interleave=True, **options), q_rope)
    for cache, copy in zip(caches_of(append), copies, strict=True):
        assert torch.equal(memory(cache), memory(copy))


def test_padding_passes_and_nothing_is_written():
    append = make_append([0, 0], [3, 0], padding=5)
    before = [memory(cache).clone() for cache in caches_of(append)]
    q = queries(append)
    q[0, 0, :2] = torch.tensor([torch.inf, torch.nan])
    got = call(append, q)
    torch.testing.assert_close(got, q, rtol=0, atol=0, equal_nan=True)
    for cache, want in zip(caches_of(append), before, strict=True):
        assert torch.equal(memory(cache), want)


def test_buffers_and_values_of_another_size():
    append = make_append([4], [1], one_tensor=False, head_dim=32)
    v, cache = append.rows[1][..., :24].contiguous(), append.cache[1][..., :24].contiguous()
    append.rows, append.cache = (append.rows[0], v), (append.cache[0], cache)
    q = queries(append)
    out = poison_like(q)
    assert call(append, q, out=out) is out
    assert_rotated_and_appended(append, q=q, out=poison_like(q), backend="reference")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rotary_dim": 7}, "rotary_dim"),
        ({"rotary_dim": 66}, "rotary_dim"),
        ({"rope_scale": 0.0}, "rope_scale"),
        ({"out": torch.zeros(2)}, "out"),
        ({"q": torch.zeros(4, 6, 32, dtype=torch.float16)}, "head_dim"),
        ({"q": torch.zeros(4, 6, 64)}, "k"),
        ({"positions": torch.tensor([0, 1, 2])}, "positions"),
        ({"positions": torch.tensor([0, 1, 2, 900])}, "within the 1 pages"),
        ({"backend": "cuda"}, "GPU"),
    ],
)
def test_bad_arguments_name_themselves(change, words):
    append = make_append([4], [0])
    q = change.pop("q", queries(append))
    append.positions = change.pop("positions", append.positions)
    with pytest.raises((ArgumentError, UnsupportedError), match=words):
        call(append, q, **change)


def test_inside_a_compiled_program():
    append = make_append([3, 2], [0, 14])
    other = make_append([3, 2], [0, 14])
    q = queries(append)

    def step(q, k, cache):
        append.rows, append.cache = (k, append.rows[1]), cache
        return call(append, q * 2) + 1

    got = torch.compile(step, backend="aot_eager", fullgraph=True)(q, append.rows[0], append.cache)
    torch.testing.assert_close(got, call(other, q * 2) + 1)
    assert torch.equal(append.cache, other.cache)


def test_refusals_of_the_kernel():
    fields = {
        "dtype": torch.bfloat16, "cache_dtype": E4M3, "num_kv_heads": 8, "head_dim": 128, "value_dim": 128,
        "rotary_dim": 128, "interleave": False, "device_type": "cuda", "arch": 90, "device_name": "NVIDIA H200",
    }  # fmt: skip
    cuda = ROPE_APPEND.backends["cuda"]
    assert cuda.check(RopeAppendProblem(**fields))
    (reason,) = cuda.check(RopeAppendProblem(**fields, unit_strides=False)).reasons
    assert "contiguous" in reason
    reasons = cuda.check(RopeAppendProblem(**fields | {"head_dim": 40_000, "rotary_dim": 2048})).reasons
    assert [each.split()[0] for each in reasons] == ["rotary_dim", "heads"]
