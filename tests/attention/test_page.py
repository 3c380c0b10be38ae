"""Writing to the paged cache and the arithmetic on page tables."""

import numpy as np
import pytest
import torch
from append_problems import assert_appended, make_append
from hypothesis import given, settings
from hypothesis import strategies as st

from warploom.attention import (
    append_paged_kv_cache,
    append_paged_mla_kv_cache,
    get_batch_indices_positions,
    get_seq_lens,
)
from warploom.attention.backends.cuda.alignment import common_alignment, vector_width
from warploom.attention.backends.cuda.page import append_shape, head_magic
from warploom.attention.page import APPEND
from warploom.attention.problems.page import AppendProblem
from warploom.core.errors import ArgumentError, UnsupportedError
from warploom.core.testing import cases, indptr_of, poison_like, random_normal

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
int32 = torch.int32


@pytest.mark.parametrize(
    *cases(layout=["NHD", "HND"], one_tensor=[True, False], page_size=[1, 7, 16, 256], dtype=[torch.bfloat16, E4M3])
)
def test_rows_land_on_their_pages(case):
    assert_appended(make_append([5, 0, 1, 40], [0, 3, 16, 250], **vars(case)))


@pytest.mark.parametrize(
    ("dtype", "cache_dtype"),
    [
        (torch.bfloat16, E4M3),
        (torch.float16, E5M2),
        (torch.float32, E4M3),
        (torch.float32, torch.bfloat16),
        (E5M2, E4M3),
        (E4M3, torch.float16),
    ],
)
def test_rows_are_rounded_to_the_dtype_of_the_cache(dtype, cache_dtype):
    append = make_append([5, 3], [0, 2], dtype=dtype, cache_dtype=cache_dtype, page_size=4)
    assert_appended(append)


def test_values_beyond_fp8_saturate_and_nan_stays():
    append = make_append([1], [0], dtype=torch.bfloat16, cache_dtype=E4M3, heads=1, head_dim=8)
    append.rows[0][0, 0] = torch.tensor([1e4, -1e4, 448, 449, float("inf"), -float("inf"), float("nan"), 0.1])
    assert_appended(append)
    k = append.planes[0][append.kv_indices[0], 0, 0].float()
    assert k[:6].tolist() == [448, -448, 448, 448, 448, -448]
    assert k[6].isnan()


@pytest.mark.parametrize(*cases(layout=["NHD", "HND"], one_tensor=[True, False], strided=[1, 8]))
def test_any_strides(case):
    assert_appended(make_append([4, 9], [1, 0], page_size=4, head_dim=24, **vars(case)))


def test_raw_types_are_copied():
    append = make_append([3], [0])
    as_uint8 = tuple(rows.view(torch.uint8) for rows in append.rows)
    cache = append.cache.view(torch.uint8)
    append_paged_kv_cache(*as_uint8, *append.arguments[2:4], cache, *append.arguments[5:])
    assert torch.equal(append.planes[0][append.kv_indices[0], :3], append.rows[0])


def test_padding_rows_write_nothing():
    assert_appended(make_append([3, 2], [0, 5], padding=4, page_size=4))
    only_padding = make_append([0, 0], [3, 0], padding=5)
    only_padding.kv_indices.fill_(10**6)  # a captured graph may leave anything behind
    assert_appended(only_padding)


def test_negative_positions_are_padding():
    append = make_append([3], [0])
    append.positions[1] = -1
    assert_appended(append)


def test_nothing_to_append():
    assert_appended(make_append([0, 0], [4, 0]))
    assert_appended(make_append([], [], padding=3))
    assert_appended(make_append([], []))


@settings(max_examples=40)
@given(
    lens=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 40)), max_size=5),
    page_size=st.integers(1, 20),
    heads=st.integers(1, 3),
    layout=st.sampled_from(["NHD", "HND"]),
    padding=st.integers(0, 3),
    seed=st.integers(0, 100),
)
def test_ragged_problems(lens, page_size, heads, layout, padding, seed):
    append, before = [a for a, _ in lens], [b for _, b in lens]
    sizes = {"page_size": page_size, "heads": heads, "head_dim": 8}
    assert_appended(make_append(append, before, layout=layout, padding=padding, seed=seed, **sizes))


def test_offsets_past_int32():
    """Strides this large overflow 32-bit address arithmetic; the memory behind is one small row."""
    cache = torch.empty(2**31 + 64, dtype=torch.uint8)  # untouched pages cost nothing
    view = cache.as_strided((2, 2, 1, 1, 8), (2**31, 8, 8, 8, 1))
    rows = torch.arange(8, dtype=torch.uint8).view(1, 1, 8)
    one = torch.ones(1, dtype=int32)
    append_paged_kv_cache(rows, rows + 8, one * 0, one * 0, view, one, torch.tensor([0, 1]), one)
    assert cache[2**31 : 2**31 + 16].tolist() == list(range(16))


def test_int64_tables_and_other_libraries_tensors():
    append = make_append([3, 2], [0, 5], dtype=torch.float32)
    expected = make_append([3, 2], [0, 5], dtype=torch.float32)
    append_paged_kv_cache(*expected.arguments)
    rows, tables = append.arguments[:2], [t.long().numpy() for t in append.arguments[2:4] + append.arguments[5:8]]
    append_paged_kv_cache(rows[0].numpy(), rows[1].numpy(), *tables[:2], append.cache.numpy(), *tables[2:])
    assert torch.equal(append.cache, expected.cache)


def test_latents_and_rotary_keys():
    lens = indptr_of([3, 2])
    cache = random_normal((4, 4, 72), torch.bfloat16)
    before = cache.clone()
    new = random_normal((5, 72), torch.bfloat16, seed=1)
    tables = torch.tensor([2, 0, 3], dtype=int32), torch.tensor([0, 2, 3], dtype=int32), torch.tensor([2, 2])
    requests, positions = get_batch_indices_positions(lens, torch.tensor([6, 2]), 5)
    append_paged_mla_kv_cache(new[:, :64], new[:, 64:], requests, positions, cache[..., :64], cache[..., 64:], *tables)
    before[2, 3], before[0, 0], before[0, 1], before[3, 0], before[3, 1] = new
    assert torch.equal(cache, before)


def test_keys_and_values_of_different_size():
    keys, values = random_normal((2, 3, 24)), random_normal((2, 3, 16), seed=1)
    k, v = torch.zeros(2, 4, 3, 24), torch.zeros(2, 4, 3, 16)
    zero = torch.zeros(2, dtype=int32)
    append_paged_kv_cache(keys, values, zero, torch.arange(2), (k, v), zero[:1] + 1, torch.tensor([0, 1]), zero[:1] + 2)
    assert torch.equal(k[1, :2], keys)
    assert torch.equal(v[1, :2], values)
    assert not k[0].any()


def change(append, **changes):
    names = ("key", "value", "requests", "positions", "cache", "indices", "indptr", "last", "layout")
    return [changes.get(name, value) for name, value in zip(names, append.arguments, strict=True)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (lambda a: {"layout": "DHN"}, ["kv_layout", "'NHD' or 'HND'", "'DHN'"]),
        (lambda a: {"key": a.rows[0][0]}, ["append_key", "nnz, num_kv_heads, head_dim", "2-D"]),
        (lambda a: {"key": a.rows[0].int()}, ["append_value", "int32"]),
        (lambda a: {"key": a.rows[0][:, :1]}, ["append_key", "num_kv_heads = 2", "num_kv_heads = 1"]),
        (lambda a: {"value": a.rows[1].float()}, ["append_value", "float16", "float32"]),
        (lambda a: {"cache": a.cache[:, :1]}, ["paged_kv_cache"]),
        (lambda a: {"cache": (a.cache[:, 0],)}, ["paged_kv_cache", "pair"]),
        (lambda a: {"cache": a.cache.int()}, ["append_key", "int32", "float16"]),
        (lambda a: {"requests": a.requests[1:]}, ["batch_indices", "nnz"]),
        (lambda a: {"positions": a.positions.float()}, ["positions", "int32"]),
        (lambda a: {"indptr": a.kv_indptr[:0]}, ["kv_indptr", "batch + 1"]),
        (lambda a: {"last": a.last_page_len[1:]}, ["kv_last_page_len", "batch = 2"]),
        (lambda a: {"requests": a.requests + 1}, ["batch_indices", "below the batch size 2", "2"]),
        (lambda a: {"positions": a.positions + 16}, ["positions", "within the 1 pages", "request 0"]),
        (lambda a: {"indices": a.kv_indices + 100}, ["kv_indices", "from 0 to 5"]),
        (lambda a: {"indices": a.kv_indices - 100}, ["kv_indices", "from 0 to 5"]),
        (lambda a: {"indices": a.kv_indices[:1]}, ["kv_indices", "kv_indptr[-1] = 3 elements"]),
    ],
)
def test_bad_arguments_name_themselves(changes, words):
    append = make_append([3, 4], [0, 20])
    with pytest.raises(ArgumentError) as error:
        append_paged_kv_cache(*change(append, **changes(append)))
    message = str(error.value)
    assert message.startswith("append_paged_kv_cache: ")
    for word in words:
        assert word in message


def test_backends_by_name():
    append = make_append([3], [0])
    assert_appended(append, backend="reference")
    with pytest.raises(ArgumentError, match="cuda"):
        append_paged_kv_cache(*append.arguments, backend="cudda")
    with pytest.raises(UnsupportedError, match="GPU"):
        append_paged_kv_cache(*append.arguments, backend="cuda")


def test_cuda_backend_says_what_it_lacks():
    fits = {"num_kv_heads": 8, "key_dim": 128, "value_dim": 128, "input_dtype": torch.half, "cache_dtype": torch.half}
    gpu = {"device_type": "cuda", "arch": 90, "device_name": "any"}
    cuda = APPEND.backends["cuda"]
    assert cuda.check(AppendProblem(**fits, **gpu, unit_strides=True))
    assert "contiguous" in cuda.check(AppendProblem(**fits, **gpu, unit_strides=False)).reasons[0]
    large = fits | {"key_dim": 2**15}
    assert "too large" in cuda.check(AppendProblem(**large, **gpu, unit_strides=True)).reasons[0]


def test_appends_inside_a_compiled_program():
    def program(key, value, indptr, seq_lens, cache, indices, kv_indptr, last):
        requests, positions = get_batch_indices_positions(indptr, seq_lens, key.shape[0])
        append_paged_kv_cache(key, value, requests, positions, cache, indices, kv_indptr, last)
        return cache.sum(), get_seq_lens(kv_indptr, last, 4)

    torch.compiler.reset()
    compiled = torch.compile(program, fullgraph=True, backend="aot_eager", dynamic=True)
    for lens in ([3, 0, 2], [1, 4, 5]):
        append = make_append(lens, [4, 2, 0], page_size=4, dtype=torch.float32)
        expected = make_append(lens, [4, 2, 0], page_size=4, dtype=torch.float32)
        seq_lens = indptr_of(lens)[1:] - indptr_of(lens)[:-1] + torch.tensor([4, 2, 0], dtype=int32)
        tables = append.arguments[5:8]
        total, lengths = compiled(*append.rows, indptr_of(lens), seq_lens, append.cache, *tables)
        append_paged_kv_cache(*expected.arguments)
        assert torch.equal(append.cache, expected.cache)
        assert torch.equal(total, expected.cache.sum())
        assert torch.equal(lengths, seq_lens)


@settings(max_examples=60)
@given(
    lens=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 50)), max_size=6),
    padding=st.integers(0, 4),
    dtype=st.sampled_from([torch.int32, torch.int64]),
)
def test_batch_indices_and_positions(lens, padding, dtype):
    append = [a for a, _ in lens]
    seq_lens = torch.tensor([a + b for a, b in lens], dtype=dtype)
    requests, positions = get_batch_indices_positions(indptr_of(append).to(dtype), seq_lens, sum(append) + padding)
    rows = [(b, n - a + i) for b, (a, n) in enumerate(zip(append, seq_lens.tolist(), strict=True)) for i in range(a)]
    rows += [(-1, 0)] * padding
    assert requests.dtype == positions.dtype == int32
    assert list(zip(requests.tolist(), positions.tolist(), strict=True)) == rows


def test_batch_indices_and_positions_into_buffers():
    buffers = torch.empty(8, dtype=int32), torch.empty(8, dtype=int32)
    poison = [poison_like(b) for b in buffers]
    results = get_batch_indices_positions(torch.tensor([0, 2, 5]), torch.tensor([2, 9]), 8, *poison)
    assert [r.data_ptr() for r in results] == [p.data_ptr() for p in poison]
    assert results[0].tolist() == [0, 0, 1, 1, 1, -1, -1, -1]
    assert results[1].tolist() == [0, 1, 6, 7, 8, 0, 0, 0]
    with pytest.raises(ArgumentError, match="`batch_indices` must be"):
        get_batch_indices_positions(torch.tensor([0, 2]), torch.tensor([2]), 8, buffers[0][:7])
    with pytest.raises(ArgumentError, match="`seq_lens` must be"):
        get_batch_indices_positions(torch.tensor([0, 2]), torch.tensor([2, 3]), 8)


def test_seq_lens():
    indptr, last = torch.tensor([0, 2, 2, 3]), torch.tensor([1, 3, 4])  # the second request has no page
    out = torch.empty(3, dtype=int32)
    assert get_seq_lens(indptr, last, 4, out=out) is out
    assert out.tolist() == [5, 0, 4]
    assert get_seq_lens(torch.zeros(1, dtype=int32), torch.zeros(0, dtype=int32), 4).tolist() == []
    with pytest.raises(ArgumentError, match="page_size"):
        get_seq_lens(indptr, last, 0)


@given(nnz=st.integers(1, 10**6), row_vectors=st.integers(1, 5000))
def test_every_vector_has_a_thread(nnz, row_vectors):
    (tokens_grid, parts_grid), (lanes, tokens) = append_shape(nnz, row_vectors, num_sms=132)
    assert lanes * tokens <= 256
    assert (tokens_grid - 1) * tokens < nnz <= tokens_grid * tokens
    assert row_vectors <= parts_grid * lanes * 2 < row_vectors + lanes * 2


def test_few_tokens_are_spread_and_many_are_not():
    assert append_shape(1, 128, 132) == ((1, 1), (128, 1))
    assert append_shape(100_000, 128, 132) == ((25_000, 1), (64, 4))


@given(heads=st.integers(2, 300), head_vectors=st.integers(1, 600))
def test_the_multiplication_divides(heads, head_vectors):
    vectors = np.arange(heads * head_vectors, dtype=np.uint64)
    magic = np.uint64(head_magic(heads, head_vectors, dense=False))
    assert magic < 2**32
    assert np.array_equal((2 * vectors * magic) >> np.uint64(32), vectors // np.uint64(head_vectors))


def test_alignment_of_accesses():
    base = torch.zeros(4, 64, dtype=torch.float16)
    assert base.data_ptr() % 16 == 0
    assert common_alignment(base) == 16
    assert common_alignment(base[:, 2:]) == 4  # both address and length
    assert common_alignment(base[:, 4:60]) == 8
    assert common_alignment(base.as_strided((4, 8), (17, 1))) == 2
    assert common_alignment(base.as_strided((1, 8), (17, 1))) == 16  # one row has no stride
    fp8 = torch.zeros(4, 64, dtype=E4M3)
    assert vector_width(base, fp8) == 8
    assert vector_width(base, fp8[:, 8:]) == 8
    assert vector_width(base, fp8[:, 4:]) == 1
