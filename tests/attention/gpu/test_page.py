"""The paged-cache kernels, against the row-by-row result and the reference."""

import pytest
import torch
from append_problems import assert_appended, caches_of, make_append, memory, with_own_memory

from warploom.attention import (
    append_paged_kv_cache,
    append_paged_mla_kv_cache,
    get_batch_indices_positions,
    get_seq_lens,
)
from warploom.attention.page import APPEND
from warploom.core.errors import ArgumentError
from warploom.core.settings import settings
from warploom.core.testing import cases, indptr_of, poison_like, ragged_lengths, random_normal

pytestmark = pytest.mark.gpu

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
int32 = torch.int32


def needs_memory(gigabytes):
    free, _ = torch.cuda.mem_get_info()
    if free < gigabytes * 2**30:
        pytest.skip(f"needs {gigabytes} GiB of GPU memory, {free / 2**30:.1f} are free")


@pytest.mark.parametrize(
    *cases(
        layout=["NHD", "HND"],
        one_tensor=[True, False],
        page_size=[1, 7, 16, 256],
        dtype=[torch.float32, torch.float16, torch.bfloat16, E4M3],
    )
)
def test_rows_land_on_their_pages(case):
    assert_appended(make_append([5, 0, 1, 40], [0, 3, 16, 250], device="cuda", **vars(case)), backend="cuda")


@pytest.mark.parametrize(*cases(heads=[1, 3, 8, 128], head_dim=[8, 36, 64, 128, 256, 512], layout=["NHD", "HND"]))
def test_any_heads(case):
    assert_appended(make_append([9, 1], [0, 30], device="cuda", **vars(case)), backend="cuda")


@pytest.mark.parametrize(*cases(strided=[1, 2, 4, 8], dtype=[torch.bfloat16, E4M3], layout=["NHD", "HND"]))
def test_any_strides(case):
    assert_appended(make_append([4, 30], [1, 0], page_size=5, head_dim=40, device="cuda", **vars(case)), backend="cuda")


@pytest.mark.parametrize("cache_dtype", [E4M3, E5M2, torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, E4M3])
@pytest.mark.parametrize("strided", [0, 1])
def test_rows_are_rounded_to_the_dtype_of_the_cache(dtype, cache_dtype, strided):
    append = make_append([5, 30], [0, 2], dtype=dtype, cache_dtype=cache_dtype, strided=strided, device="cuda")
    if dtype.itemsize > 1:
        extremes = torch.tensor([1e4, -1e4, 448, 460, 6e4, -6e4, 1e-9, 0.0], device="cuda").to(dtype)
        append.rows[0][0, 0, :8] = extremes
    assert_appended(append, backend="cuda")


def test_nan_and_infinities_convert_as_in_the_reference():
    specials = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0] * 2, device="cuda")
    for cache_dtype in (E4M3, E5M2):
        appends = [
            make_append([3], [0], dtype=torch.bfloat16, cache_dtype=cache_dtype, device="cuda") for _ in range(2)
        ]
        for append, backend in zip(appends, ("cuda", "reference"), strict=True):
            append.rows[0][1, 1, 8:16] = specials
            append_paged_kv_cache(*append.arguments, backend=backend)
        got, want = (append.planes[0].float() for append in appends)
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def test_padding_rows_write_nothing():
    assert_appended(make_append([3, 20], [0, 5], padding=40, page_size=4, device="cuda"), backend="cuda")
    only_padding = make_append([0, 0], [3, 0], padding=50, device="cuda")
    only_padding.kv_indices.fill_(2**31 - 1)
    only_padding.kv_indptr.fill_(2**31 - 1)
    assert_appended(only_padding, backend="cuda")


def test_nothing_to_append():
    assert_appended(make_append([0, 0], [4, 0], device="cuda"), backend="cuda")
    assert_appended(make_append([], [], padding=3, device="cuda"), backend="cuda")
    assert_appended(make_append([], [], device="cuda"), backend="cuda")


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_large_problems_match_the_reference(seed, layout):
    append_lens = ragged_lengths(64, 900, seed).tolist()
    before = ragged_lengths(64, 3000, seed + 100).tolist()
    sizes = {"heads": 8, "head_dim": 128, "dtype": torch.bfloat16, "layout": layout, "padding": 17 * seed, "seed": seed}
    append = make_append(append_lens, before, device="cuda", **sizes)
    copies = tuple(with_own_memory(cache) for cache in caches_of(append))
    arguments = list(append.arguments)
    append_paged_kv_cache(*arguments)
    assert APPEND.last.name == "cuda"
    arguments[4] = copies if len(copies) == 2 else copies[0]
    append_paged_kv_cache(*arguments, backend="reference")
    for cache, copy in zip(caches_of(append), copies, strict=True):
        assert torch.equal(memory(cache), memory(copy))


def test_cache_offsets_past_int32():
    needs_memory(12)
    pages = 2**31 // (2 * 16 * 8 * 128) + 1000  # elements pass 2^31
    cache = torch.zeros(pages, 2, 16, 8, 128, dtype=torch.bfloat16, device="cuda")
    assert cache.numel() > 2**31
    rows = random_normal((32, 8, 128), torch.bfloat16, device="cuda")
    where = torch.zeros(32, dtype=int32, device="cuda"), torch.arange(32, dtype=int32, device="cuda")
    table = torch.tensor([pages - 1, pages - 2], dtype=int32, device="cuda"), indptr_of([2], "cuda"), where[0][:1] + 16
    append_paged_kv_cache(rows, rows * 2, *where, cache, *table, backend="cuda")
    assert torch.equal(cache[-1, 0], rows[:16])
    assert torch.equal(cache[-2, 1], rows[16:] * 2)
    assert not cache[:-2].any()


def test_row_offsets_past_int32():
    needs_memory(8)
    nnz = 2**31 // 1024 + 5
    rows = torch.empty(nnz, 8, 128, dtype=torch.uint8, device="cuda")
    rows[-1].random_(0, 255)
    requests = torch.full((nnz,), -1, dtype=int32, device="cuda")
    requests[-1] = 0
    cache = torch.zeros(2, 2, 16, 8, 128, dtype=torch.uint8, device="cuda")
    zero = torch.zeros(nnz, dtype=int32, device="cuda")
    append_paged_kv_cache(rows, rows, requests, zero, cache, zero[:1] + 1, indptr_of([1], "cuda"), zero[:1] + 1)
    assert torch.equal(cache[1, 0, 0], rows[-1])
    assert torch.equal(cache[1, 1, 0], rows[-1])


def test_graph_replays_with_new_rows_and_tables():
    append = make_append([6, 2], [0, 20], page_size=4, padding=4, device="cuda")
    append_paged_kv_cache(*append.arguments)  # compiles before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        append_paged_kv_cache(*append.arguments, backend="cuda")
    for seed in range(1, 4):
        following = make_append(
            [2 * seed, 1],
            [seed, 19],
            page_size=4,
            padding=11 - 2 * seed,
            spare_pages=6 - seed,
            device="cuda",
            seed=seed,
        )
        for static, new in zip(append.rows, following.rows, strict=True):
            static.copy_(new)
        append.requests.copy_(following.requests)
        append.positions.copy_(following.positions)
        append.kv_indptr.copy_(following.kv_indptr)
        append.kv_indices[: following.kv_indices.shape[0]] = following.kv_indices
        following.cache.copy_(append.cache)
        append_paged_kv_cache(*following.arguments, backend="reference")
        graph.replay()
        assert torch.equal(append.cache, following.cache)


def test_latents_and_rotary_keys():
    new = random_normal((300, 576), torch.bfloat16, device="cuda")
    for cache in (
        torch.zeros(30, 64, 576, dtype=torch.bfloat16, device="cuda"),
        torch.zeros(30, 64, 576, dtype=E4M3, device="cuda"),
    ):
        lens = [100, 0, 200]
        where = get_batch_indices_positions(indptr_of(lens, "cuda"), torch.tensor(lens, device="cuda"), 300)
        table = torch.arange(6, dtype=int32, device="cuda") * 3, indptr_of([2, 0, 4], "cuda")
        last = torch.tensor([36, 0, 8], device="cuda")
        append_paged_mla_kv_cache(
            new[:, :512], new[:, 512:], *where, cache[..., :512], cache[..., 512:], *table, last, backend="cuda"
        )
        flat = cache[::3].flatten(0, 1).float()
        assert torch.equal(flat[:100], new[:100].to(cache.dtype).float())
        assert torch.equal(flat[128:328], new[100:].to(cache.dtype).float())
        assert not flat[328:].any()


@pytest.mark.parametrize("batch", [0, 1, 5, 300])
@pytest.mark.parametrize("padding", [0, 1000])
def test_page_tables(batch, padding):
    lens = ragged_lengths(batch, 500, seed=batch)
    seq_lens = (lens + ragged_lengths(batch, 500, seed=1)).to("cuda")
    nnz = int(lens.sum()) + padding
    results = []
    for backend in ("cuda", "reference"):
        buffers = [poison_like(torch.empty(nnz, dtype=int32, device="cuda")) for _ in range(2)]
        results.append(get_batch_indices_positions(indptr_of(lens, "cuda"), seq_lens, nnz, *buffers, backend=backend))
    for got, want in zip(*results, strict=True):
        assert torch.equal(got, want)
    pages = indptr_of((lens + 15) // 16, "cuda")
    last = ((lens - 1) % 16 + 1).to("cuda")
    assert torch.equal(get_seq_lens(pages, last, 16, backend="cuda"), lens.to("cuda"))


def test_debug_checks_find_pages_outside_the_cache():
    append = make_append([3, 4], [0, 20], device="cuda")
    append.kv_indices += 100
    with settings.override(debug_checks=True), pytest.raises(ArgumentError, match="kv_indices"):
        append_paged_kv_cache(*append.arguments)


@pytest.mark.gpu(count=2)
def test_second_gpu_while_the_first_is_current():
    assert torch.cuda.current_device() == 0
    assert_appended(make_append([5, 1], [0, 16], device="cuda:1"), backend="cuda")
    assert torch.cuda.current_device() == 0
