"""Attention on a GPU: every backend against the reference on float64 copies of the same inputs."""

import pytest
import torch
from attention_oracle import paged_batch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from warploom.attention import (
    BatchAttention,
    BatchDecodeWithPagedKVCacheWrapper,
    BatchPrefillWithPagedKVCacheWrapper,
    BatchPrefillWithRaggedKVCacheWrapper,
    CUDAGraphBatchDecodeWithPagedKVCacheWrapper,
    MultiLevelCascadeAttentionWrapper,
    single_decode_with_kv_cache,
    single_prefill_with_kv_cache_return_lse,
)
from warploom.attention.variants import BUILTIN_VARIANTS
from warploom.core.errors import ArgumentError, PerformanceWarning, UnsupportedError
from warploom.core.settings import settings as wl_settings
from warploom.core.testing import assert_close, cases

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::warploom.core.errors.PerformanceWarning")]

DTYPES = [torch.float16, torch.bfloat16]
# The kernels round the softmax weights to 16 bits before the second product, so a result carries a few roundings.
KERNEL = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 2e-5}


def close(got, expected, dtype):
    assert_close(got[0].cpu(), expected[0], rtol=KERNEL[dtype], atol=KERNEL[dtype], what="out")
    assert_close(got[1].cpu(), expected[1], rtol=1e-3, atol=5e-3, what="lse")


def expected_of(b, **options):
    """The reference on the CPU in float64, from the same rounded inputs."""
    attention = BatchAttention(backend="reference")
    b64 = [x.double() for x in (b.q, b.k_cache, b.v_cache)]
    plan(attention, b, torch.float64, "cpu", **options)
    return attention.run(b64[0], (b64[1], b64[2]))


def plan(attention, b, dtype, device, **options):
    heads, dim = b.q.shape[1:]
    attention.plan(
        b.qo_indptr.to(device), torch.tensor(b.kv_lens, dtype=torch.int32, device=device), b.block_table.to(device), heads,
        b.k_cache.shape[2], dim, b.v_cache.shape[3], dtype_q=dtype, page_size=b.page_size, **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    *cases(
        dtype=DTYPES, lens=[([3, 1, 0, 6, 1], [7, 20, 5, 6, 0]), ([1] * 7, [1, 33, 500, 0, 64, 65, 1000]), ([300], [700])],
        heads=[(4, 2), (8, 8), (14, 2)], dim=[64, 128], backend=["cuda", "hopper", "sdpa", "reference"],
    )
)  # fmt: skip
def test_batches(case):
    (heads, kv_heads), (qo_lens, kv_lens) = case.heads, case.lens
    b = paged_batch(qo_lens, kv_lens, heads=heads, kv_heads=kv_heads, dim=case.dim, page_size=16, dtype=case.dtype)
    attention = BatchAttention(backend=case.backend)
    plan(attention, b, case.dtype, "cuda", causal=True)
    close(attention.run(b.q.cuda(), (b.k_cache.cuda(), b.v_cache.cuda())), expected_of(b, causal=True), case.dtype)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_random_batches(data):
    batch = data.draw(st.integers(0, 6))
    kv_lens = data.draw(st.lists(st.integers(0, 300), min_size=batch, max_size=batch))
    qo_lens = [data.draw(st.integers(0, 40)) for _ in kv_lens]
    kv_heads, group = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 8))
    dtype = data.draw(st.sampled_from([*DTYPES, torch.float32]))
    options = {
        "causal": data.draw(st.booleans()),
        "window_left": data.draw(st.sampled_from([-1, 0, 17])),
    }
    b = paged_batch(
        qo_lens, kv_lens, heads=kv_heads * group, kv_heads=kv_heads, dim=data.draw(st.sampled_from([8, 72, 128, 256])),
        page_size=data.draw(st.sampled_from([1, 5, 16, 64])), dtype=dtype,
    )  # fmt: skip
    for backend in ("cuda", "hopper", "sdpa", "reference"):
        attention = BatchAttention(backend=backend)
        try:
            plan(attention, b, dtype, "cuda", **options)
        except UnsupportedError:
            continue
        close(attention.run(b.q.cuda(), (b.k_cache.cuda(), b.v_cache.cuda())), expected_of(b, **options), dtype)


@pytest.mark.parametrize("lens", [([3], [1]), ([9, 2, 70], [2, 2, 5]), ([300], [130])])
@pytest.mark.parametrize("backend", ["cuda", "hopper", "sdpa", "reference"])
def test_window_of_queries_before_the_first_key(backend, lens):
    b = paged_batch(*lens, dim=64, page_size=16, dtype=torch.float16)
    options = {"causal": False, "window_left": 5}
    attention = BatchAttention(backend=backend)
    plan(attention, b, torch.float16, "cuda", **options)
    close(attention.run(b.q.cuda(), (b.k_cache.cuda(), b.v_cache.cuda())), expected_of(b, **options), torch.float16)


@pytest.mark.parametrize("variant", BUILTIN_VARIANTS, ids=lambda v: v.name)
@pytest.mark.parametrize("backend", ["auto", "cuda", "hopper", "sdpa", "reference"])
@pytest.mark.parametrize(
    ("qo_lens", "kv_lens"),
    [([3, 1, 0, 6, 1], [7, 20, 5, 6, 0]), ([20, 1, 90, 1], [70, 600, 300, 17])],
    ids=["few", "many"],
)
def test_every_variant(variant, backend, qo_lens, kv_lens):
    b = paged_batch(qo_lens, kv_lens, dim=64, dtype=torch.float16)
    options = variant.example(4, qo_lens, kv_lens)
    attention = BatchAttention(backend=backend)
    on_gpu = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    try:
        plan(attention, b, torch.float16, "cuda", **on_gpu)
    except UnsupportedError:
        assert backend == "sdpa" or (backend, variant.name) == ("hopper", "rope")
        return
    close(attention.run(b.q.cuda(), (b.k_cache.cuda(), b.v_cache.cuda())), expected_of(b, **options), torch.float16)


def test_tables_on_the_cpu_and_queries_on_the_gpu():
    b = paged_batch([1, 2], [9, 30], dim=64, dtype=torch.float16)
    attention = BatchAttention()
    plan(attention, b, torch.float16, "cpu", causal=True)
    close(attention.run(b.q.cuda(), (b.k_cache.cuda(), b.v_cache.cuda())), expected_of(b, causal=True), torch.float16)


def test_decode_in_a_cuda_graph_with_new_lengths_between_replays():
    buffers = [torch.zeros(n, dtype=torch.int32, device="cuda") for n in (5, 64, 4)]
    decode = CUDAGraphBatchDecodeWithPagedKVCacheWrapper(None, *buffers)

    def step(kv_lens, seed):
        b = paged_batch([1] * 4, kv_lens, dim=64, page_size=16, dtype=torch.float16, seed=seed)
        tables = (b.kv_indptr.cuda(), b.kv_indices.cuda(), b.last_page_len.cuda())
        decode.plan(*tables, 4, 2, 64, 16, data_type="float16")
        return b

    pages = 80
    q = torch.zeros(4, 4, 64, dtype=torch.float16, device="cuda")
    cache = [torch.zeros(pages, 16, 2, 64, dtype=torch.float16, device="cuda") for _ in range(2)]

    def fill(b):
        q.copy_(b.q)
        for mine, theirs in zip(cache, b.cache, strict=True):
            mine[: len(theirs)].copy_(theirs)

    fill(step([5, 60, 17, 1], 0))
    decode.run_return_lse(q, tuple(cache))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, lse = decode.run_return_lse(q, tuple(cache))
    for seed, kv_lens in enumerate([[5, 60, 17, 1], [200, 3, 0, 90], [1, 1, 1, 1]]):
        b = step(kv_lens, seed)
        fill(b)
        graph.replay()
        close((out, lse), expected_of(b), torch.float16)


def test_prefill_in_a_cuda_graph_with_new_lengths_between_replays():
    prefill = BatchPrefillWithPagedKVCacheWrapper(use_cuda_graph=True)
    q = torch.zeros(40, 4, 64, dtype=torch.float16, device="cuda")
    cache = [torch.zeros(80, 16, 2, 64, dtype=torch.float16, device="cuda") for _ in range(2)]

    def step(qo_lens, kv_lens, seed):
        b = paged_batch(qo_lens, kv_lens, dim=64, page_size=16, dtype=torch.float16, seed=seed)
        tables = (x.cuda() for x in (b.qo_indptr, b.kv_indptr, b.kv_indices, b.last_page_len))
        prefill.plan(*tables, 4, 2, 64, 16, causal=True)
        q[: len(b.q)].copy_(b.q)
        for mine, theirs in zip(cache, b.cache, strict=True):
            mine[: len(theirs)].copy_(theirs)
        return b

    step([20, 0, 20], [300, 0, 20], 0)
    prefill.run_return_lse(q, tuple(cache))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, lse = prefill.run_return_lse(q, tuple(cache))
    for seed, lens in enumerate([([20, 0, 20], [300, 0, 20]), ([1, 39, 0], [200, 60, 9]), ([3, 2], [3, 5])]):
        b = step(*lens, seed)
        graph.replay()
        rows = len(b.q)
        close((out[:rows], lse[:rows]), expected_of(b, causal=True), torch.float16)
        assert (out[rows:] == 0).all()


def test_single_functions_in_a_cuda_graph():
    q, k, v = (torch.randn(n, h, 64, device="cuda", dtype=torch.float16) for n, h in ((8, 4), (100, 2), (100, 2)))
    options = {"causal": True, "pos_encoding_mode": "ROPE_LLAMA"}
    single_prefill_with_kv_cache_return_lse(q, k, v, **options)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = single_prefill_with_kv_cache_return_lse(q, k, v, **options)
    q.copy_(torch.randn_like(q))
    graph.replay()
    close(
        got, single_prefill_with_kv_cache_return_lse(*(x.double().cpu() for x in (q, k, v)), **options), torch.float16
    )


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_caches_beyond_two_to_the_31_elements(backend):
    pages, page_size = 140_000, 16
    cache = torch.zeros(2, pages, page_size, 8, 128, dtype=torch.float16, device="cuda")
    used = torch.tensor([pages - 1, pages - 7], dtype=torch.int32)
    small = torch.randn(2, 2, page_size, 8, 128, dtype=torch.float16)
    cache[:, used.long()] = small.cuda()
    q = torch.randn(1, 8, 128, dtype=torch.float16)
    attention = BatchAttention(backend=backend)
    attention.plan(
        torch.tensor([0, 1]), torch.tensor([20]), used.cuda(), 8, 8, 128, dtype_q=q.dtype, page_size=page_size
    )
    got = attention.run(q.cuda(), (cache[0], cache[1]))
    k, v = (x.flatten(0, 1)[:20].double() for x in small)
    close(got, single_prefill_with_kv_cache_return_lse(q.double(), k, v), torch.float16)


def test_cascade():
    page = torch.tensor
    cascade = MultiLevelCascadeAttentionWrapper(2)
    tables = (
        [page([0, 3]), page([0, 1, 2, 3])],
        [page([0, 2]), page([0, 1, 2, 3])],
        [page([4, 5]), page([0, 1, 2])],
        [page([16]), page([3, 1, 9])],
    )
    on_gpu = [[x.cuda() for x in level] for level in tables]
    cascade.plan(*on_gpu, 4, 2, 64, 16)
    cache, q = torch.randn(8, 2, 16, 2, 64).half(), torch.randn(3, 4, 64).half()
    got = cascade.run(q.cuda(), cache.cuda(), return_lse=True)
    for i, last in enumerate([3, 1, 9]):
        k, v = (cache[[4, 5, i], plane].flatten(0, 1)[: 32 + last].double() for plane in (0, 1))
        expected = single_prefill_with_kv_cache_return_lse(q[i : i + 1].double(), k, v)
        close([x[i : i + 1] for x in got], expected, torch.float16)


def test_float64_and_a_second_stream():
    q, k, v = (torch.randn(n, h, 64, device="cuda", dtype=torch.float16) for n, h in ((8, 4), (100, 2), (100, 2)))
    with torch.cuda.stream(torch.cuda.Stream()):
        got = single_prefill_with_kv_cache_return_lse(q, k, v, causal=True)
        torch.cuda.current_stream().synchronize()
    close(
        got, single_prefill_with_kv_cache_return_lse(*(x.double().cpu() for x in (q, k, v)), causal=True), torch.float16
    )


def test_programs_of_the_interface():
    k, v = (torch.randn(2048, 32, 128).half().to(0) for _ in range(2))
    q = torch.randn(32, 128).half().to(0)
    for mode in ("NONE", "ROPE_LLAMA"):
        got = single_decode_with_kv_cache(q, k, v, pos_encoding_mode=mode, return_lse=True)
        expected = single_decode_with_kv_cache(q.cpu().double(), k.cpu().double(), v.cpu().double(), pos_encoding_mode=mode,
                                               return_lse=True)  # fmt: skip
        close(got, expected, torch.float16)
    q = torch.randn(128, 32, 128).half().to(0)
    for mode in ("NONE", "ROPE_LLAMA"):
        got = single_prefill_with_kv_cache_return_lse(q, k, v, causal=True, pos_encoding_mode=mode)
        want = single_prefill_with_kv_cache_return_lse(q.float(), k.float(), v.float(), causal=True, pos_encoding_mode=mode,
                                                       backend="reference")  # fmt: skip
        close(got, [x.cpu() for x in want], torch.float16)


def test_page_out_of_range_under_debug_checks():
    b = paged_batch([1], [9], dim=64, dtype=torch.float16)
    attention = BatchAttention()
    plan(attention, b, torch.float16, "cuda")
    with wl_settings.override(debug_checks=True), pytest.raises(ArgumentError, match="page indices"):
        attention.run(b.q.cuda(), torch.zeros(1, 2, 4, 2, 64, dtype=torch.float16, device="cuda"))


def test_cutlass_refuses_on_a_gpu_with_its_reason():
    b = paged_batch([1], [9], dim=40, dtype=torch.float16)
    with pytest.raises(UnsupportedError, match=r"takes heads of|needs sm_90"):
        plan(BatchAttention(backend="cutlass"), b, torch.float16, "cuda")


@pytest.mark.filterwarnings("default")
def test_reference_taken_by_auto_says_so():
    from warploom.attention.attention import ATTENTION

    ATTENTION._warned = False
    ATTENTION._selections.clear()
    b = paged_batch([1], [9], dim=64, dtype=torch.float16)
    with pytest.warns(PerformanceWarning, match="soft cap"):
        plan(BatchAttention(), b, torch.float32, "cuda", logits_soft_cap=2.0)


def test_ragged_and_decode_wrappers():
    b = paged_batch([4, 4], [4, 4], heads=8, kv_heads=2, dim=128, page_size=4, dtype=torch.bfloat16)
    k, v = (torch.cat([b.request(i)[1 + j] for i in range(2)]).cuda() for j in (0, 1))
    ragged = BatchPrefillWithRaggedKVCacheWrapper()
    ragged.plan(b.qo_indptr.cuda(), b.qo_indptr.cuda(), 8, 2, 128, causal=True, q_data_type="bfloat16")
    close(ragged.run_return_lse(b.q.cuda(), k, v), expected_of(b, causal=True), torch.bfloat16)
    decode = BatchDecodeWithPagedKVCacheWrapper()
    tables = (x.cuda() for x in (b.kv_indptr, b.kv_indices, b.last_page_len))
    decode.plan(*tables, 8, 2, 128, 4, data_type="bfloat16", q_len_per_req=4)
    close(decode.run_return_lse(b.q.cuda(), (b.k_cache.cuda(), b.v_cache.cuda())), expected_of(b, causal=True),
          torch.bfloat16)  # fmt: skip
