"""What is kept from one plan to the next, and what is not: on an emulated GPU, against the definition."""

import pickle
from dataclasses import replace

import pytest
import torch
from attention_oracle import paged_batch
from emulated_gpu import EmulatedGpu

from warploom.attention import (
    BatchAttention,
    BatchDecodeWithPagedKVCacheWrapper,
    BatchPrefillWithPagedKVCacheWrapper,
    BatchPrefillWithRaggedKVCacheWrapper,
    MultiLevelCascadeAttentionWrapper,
    single_decode_with_kv_cache,
)
from warploom.attention.options import AttentionOptions
from warploom.attention.table_arguments import even_offsets, one_request
from warploom.core.errors import ArgumentError
from warploom.core.settings import settings
from warploom.core.testing import assert_close

SIZES = 4, 2, 16  # heads of queries, of keys; components
STEPS = [  # numbers of queries and keys of each request, of steps that follow one another
    ([1, 1, 1], [5, 17, 1]),
    ([1, 1, 1], [6, 18, 2]),
    ([1, 1, 1], [0, 300, 4]),
    ([1, 1], [90, 4]),
    ([1, 1, 1], [1, 1, 1]),
]
MIXED = [([3, 1, 0], [7, 20, 5]), ([1, 1, 2], [8, 3, 60]), ([1, 2, 1], [8, 3, 60]), ([5], [9]), ([1, 1, 2], [8, 3, 60])]


@pytest.fixture
def gpu(monkeypatch):
    return EmulatedGpu(monkeypatch)


def batch(lens, seed=0):
    return paged_batch(*lens, page_size=4, dtype=torch.float16, seed=seed)


def close(got, want):
    assert_close(got[0], want[0], rtol=2e-3, atol=2e-3, what="out")
    assert_close(got[1], want[1], rtol=1e-5, atol=1e-5, what="lse")


def cuda_wrapper(kind, **options):
    return kind(backend="cuda", **options)


def plan_decode(wrapper, b, **options):
    wrapper.plan(b.kv_indptr, b.kv_indices, b.last_page_len, *SIZES, b.page_size, **options)


def plan_prefill(wrapper, b, **options):
    wrapper.plan(b.qo_indptr, b.kv_indptr, b.kv_indices, b.last_page_len, *SIZES, b.page_size, **options)


def plan_block_table(wrapper, b):
    lens = torch.tensor(b.kv_lens, dtype=torch.int32)
    wrapper.plan(None, None, None, *SIZES, b.page_size, block_tables=b.block_table, seq_lens=lens)


def plan_step(wrapper, b, table, **options):
    lens = torch.tensor(b.kv_lens, dtype=torch.int32)
    wrapper.plan(b.qo_indptr, lens, table, *SIZES, 16, dtype_q="float16", page_size=b.page_size, **options)


def plan_step_by_indices(wrapper, b):
    lens = torch.tensor(b.kv_lens, dtype=torch.int32)
    wrapper.plan(b.qo_indptr, b.kv_indptr, b.kv_indices, lens, *SIZES, 16, b.page_size, q_data_type="float16")


SPELLINGS = {
    "decode": (BatchDecodeWithPagedKVCacheWrapper, STEPS, plan_decode),
    "decode with a block table": (BatchDecodeWithPagedKVCacheWrapper, STEPS, plan_block_table),
    "prefill": (BatchPrefillWithPagedKVCacheWrapper, MIXED, plan_prefill),
    "packed pages": (BatchAttention, MIXED, lambda wrapper, b: plan_step(wrapper, b, b.kv_indices)),
    "block table": (BatchAttention, MIXED, lambda wrapper, b: plan_step(wrapper, b, b.block_table)),
    "offsets and lengths": (BatchAttention, MIXED, plan_step_by_indices),
}


@pytest.mark.parametrize("use_cuda_graph", [False, True])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_steps_that_follow_one_another(gpu, spelling, use_cuda_graph):
    """Every step's lengths, tables and numbers of requests are its own, whatever is kept."""
    kind, steps, plan = SPELLINGS[spelling]
    if use_cuda_graph:
        steps = [step for step in steps if len(step[0]) == 3]
    wrapper = cuda_wrapper(kind, use_cuda_graph=use_cuda_graph)
    if use_cuda_graph:  # the largest first
        plan(wrapper, batch((steps[0][0], [300] * 3)))
    for seed, lens in enumerate(steps):
        b = batch(lens, seed)
        plan(wrapper, b)
        run = wrapper.run if kind is BatchAttention else wrapper.run_return_lse
        for _ in range(2):
            close(run(b.q, b.cache), b.expected())


def test_rows_that_follow_one_another(gpu):
    wrapper = cuda_wrapper(BatchPrefillWithRaggedKVCacheWrapper)
    for seed, (qo_lens, kv_lens) in enumerate(MIXED):
        b = batch((qo_lens, kv_lens), seed)
        k, v = (torch.cat([b.request(i)[1 + j] for i in range(len(kv_lens))]) for j in (0, 1))
        wrapper.plan(b.qo_indptr, torch.tensor([0, *kv_lens]).cumsum(0).int(), *SIZES, causal=True)
        for _ in range(2):
            close(wrapper.run_return_lse(b.q, k, v), b.expected(causal=True))


def test_a_step_takes_one_launch_and_a_layer_one(gpu):
    wrapper = cuda_wrapper(BatchDecodeWithPagedKVCacheWrapper)
    for seed, lens in enumerate(STEPS[:3]):
        b = batch(lens, seed)
        gpu.launches.clear()
        plan_decode(wrapper, b)
        for _ in range(3):
            wrapper.run(b.q, b.cache)
        assert gpu.launches == ["schedule_kernel"] + ["attention_kernel"] * 3


def test_runs_of_the_plan_before_serve_a_plan_of_its_kind(gpu, monkeypatch):
    from warploom.attention.backends.cuda.attention import CudaAttention

    prepared = []
    prepare = CudaAttention.prepare
    monkeypatch.setattr(CudaAttention, "prepare", lambda *args: prepared.append(args) or prepare(*args))
    wrapper = cuda_wrapper(BatchDecodeWithPagedKVCacheWrapper)

    def step(lens, seed, **options):
        b = batch(lens, seed)
        plan_decode(wrapper, b, **options)
        cache = [torch.cat([x, x.new_zeros(200 - x.shape[0], *x.shape[1:])]) for x in b.cache]  # of every step's shape
        close(wrapper.run_return_lse(b.q, cache), b.expected(**options))
        return len(prepared)

    assert step(STEPS[0], 0) == 1
    assert step(STEPS[1], 1) == 1
    assert step(STEPS[2], 2) == 1
    assert step(STEPS[3], 3) == 2, "another number of requests"
    assert step(STEPS[0], 4) == 3
    assert step(STEPS[1], 5, sm_scale=0.7) == 4
    assert step(STEPS[1], 6, sm_scale=0.7, window_left=3) == 5
    assert step(STEPS[1], 7, window_left=3) == 6
    with settings.override(debug_checks=True):
        assert step(STEPS[1], 8, window_left=3) == 6
    assert step(STEPS[2], 9, window_left=3) == 7


def test_steps_of_ever_new_numbers_of_queries(gpu):
    """Their runs do not pile up, and are repeated all the same."""
    wrapper = cuda_wrapper(BatchPrefillWithPagedKVCacheWrapper)
    for rows in range(1, 80):
        b = batch(([rows], [90]))
        plan_prefill(wrapper, b)
        wrapper.run(b.q, b.cache)
        assert wrapper._runs.key(b.q, b.cache, None, None, None, None, None, False, None, None) in wrapper._runs._known
    assert len(wrapper._runs._known) < 70


def test_tables_that_are_changed_in_place(gpu):
    """The tensors are those of the step before, with other values."""
    wrapper = cuda_wrapper(BatchDecodeWithPagedKVCacheWrapper)
    packed = cuda_wrapper(BatchAttention)
    tables = [torch.zeros(n, dtype=torch.int32) for n in (4, 100, 3)]
    for seed, lens in enumerate(STEPS[:3]):
        b = batch(lens, seed)
        for mine, theirs in zip(tables, (b.kv_indptr, b.kv_indices, b.last_page_len), strict=True):
            mine[: len(theirs)] = theirs
        wrapper.plan(*tables, *SIZES, b.page_size)
        close(wrapper.run_return_lse(b.q, b.cache), b.expected())
        plan_step(packed, b, tables[1])
        close(packed.run(b.q, b.cache), b.expected())


def test_wrappers_that_share_a_workspace(gpu):
    """A plan is not overwritten by that of another wrapper, nor by one of the same that a run derives."""
    first = cuda_wrapper(BatchDecodeWithPagedKVCacheWrapper)
    size = first.workspace_size(*SIZES, 4)
    buffer = torch.zeros(size + 256, dtype=torch.uint8)
    buffer = buffer[-buffer.data_ptr() % 256 :][:size]
    first, second = (
        cuda_wrapper(kind, float_workspace_buffer=buffer)
        for kind in (BatchDecodeWithPagedKVCacheWrapper, BatchPrefillWithPagedKVCacheWrapper)
    )
    a, b = batch(STEPS[0], 0), batch(MIXED[0], 1)
    plan_decode(first, a)
    plan_prefill(second, b, causal=True)
    for _ in range(2):
        close(first.run_return_lse(a.q, a.cache), a.expected())
        close(second.run_return_lse(b.q, b.cache), b.expected(causal=True))
        close(first.run_return_lse(a.q, a.cache, window_left=2), a.expected(window_left=2))
    buffer.fill_(255)  # it is scratch memory
    close(first.run_return_lse(a.q, a.cache), a.expected())


def test_wrappers_that_share_nothing(gpu):
    wrappers = [cuda_wrapper(BatchDecodeWithPagedKVCacheWrapper) for _ in STEPS]
    batches = [batch(lens, seed) for seed, lens in enumerate(STEPS)]
    for wrapper, b in zip(wrappers, batches, strict=True):
        plan_decode(wrapper, b)
    for wrapper, b in zip(wrappers, batches, strict=True):
        close(wrapper.run_return_lse(b.q, b.cache), b.expected())


def test_derived_plans_are_made_anew_after_a_plan(gpu):
    wrapper = cuda_wrapper(BatchDecodeWithPagedKVCacheWrapper)
    for seed, lens in enumerate(STEPS[:3]):
        b = batch(lens, seed)
        plan_decode(wrapper, b)
        for _ in range(2):
            close(wrapper.run_return_lse(b.q, b.cache, window_left=3), b.expected(window_left=3))


def test_levels_of_a_cascade_in_one_workspace(gpu):
    buffer = torch.zeros(1 << 20, dtype=torch.uint8)
    cascade = MultiLevelCascadeAttentionWrapper(2, buffer[-buffer.data_ptr() % 256 :], backend="cuda")
    cache, q = torch.randn(8, 2, 4, 2, 16).half(), torch.randn(3, 4, 16).half()
    for last in ([4, 3, 1], [1, 1, 2]):
        tables = [[[0, 3], [0, 1, 2, 3]], [[0, 2], [0, 1, 2, 3]], [[4, 5], [0, 1, 2]], [[4], last]]
        cascade.plan(*[[torch.tensor(x, dtype=torch.int32) for x in level] for level in tables], *SIZES, 4, causal=True)
        with settings.override(backend="merge_states=reference"):
            got = cascade.run(q, cache, return_lse=True)
        for i, length in enumerate(last):
            k, v = (cache[[4, 5, i], plane].flatten(0, 1)[: 8 + length] for plane in (0, 1))
            want = single_decode_with_kv_cache(q[i], k, v, backend="reference", return_lse=True)
            close([x[i] for x in got], want)


def test_graphs_find_what_they_captured(gpu):
    """Tables, starts and scratch memory of a wrapper in graph mode stay where they are."""
    wrapper = cuda_wrapper(BatchDecodeWithPagedKVCacheWrapper, use_cuda_graph=True)
    plan_decode(wrapper, batch((STEPS[0][0], [300] * 3)))
    seen = []
    for seed, lens in enumerate([step for step in STEPS if len(step[0]) == 3]):
        b = batch(lens, seed)
        plan_decode(wrapper, b)
        gpu.parameters.clear()
        wrapper.run(b.q, b.cache)
        plan, run = gpu.parameters
        names = ("qo_indptr", "kv_lens", "kv_starts", "starts", "arrivals")
        assert [plan[name] for name in names] == [run[name] for name in names]
        seen.append([plan["unit_indptr"], *(run[name] for name in (*names, "pages", "partial_out", "partial_lse"))])
    assert all(each == seen[0] for each in seen)


def test_graph_buffers_are_of_int32():
    wrapper = BatchPrefillWithPagedKVCacheWrapper(use_cuda_graph=True, qo_indptr_buf=torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ArgumentError, match="qo_indptr buffer"):
        plan_prefill(wrapper, batch(MIXED[0]))


def test_offsets_of_a_stream_are_its_own(monkeypatch):
    streams = {"current": 1, "capturing": False}
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: streams["current"], raising=False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: streams["capturing"])
    made = []
    monkeypatch.setattr(
        "warploom.attention.table_arguments._offsets_of",
        lambda batch, step, device: made.append((batch, step, device)) or torch.arange(batch + 1),
    )
    devices = [torch.device("cuda", i) for i in (0, 1)]
    first = even_offsets(1003, 7, devices[0])
    assert even_offsets(1003, 7, devices[0]) is first
    assert even_offsets(1004, 7, devices[0]) is not first
    assert even_offsets(1003, 8, devices[0]) is not first
    assert even_offsets(1003, 7, devices[1]) is not first
    streams["current"] = 2
    second = even_offsets(1003, 7, devices[0])
    assert second is not first
    streams["capturing"] = True
    captured = even_offsets(1003, 7, devices[0])
    assert captured is not second
    streams["capturing"] = False
    assert even_offsets(1003, 7, devices[0]) is second
    assert len(made) == 6


def test_problems_are_hashed_by_their_fields():
    options = AttentionOptions(num_qo_heads=4, num_kv_heads=2, head_dim_qk=16).resolve("plan")
    problem = options.problem("decode", "paged", torch.device("cpu"))
    same = AttentionOptions(num_qo_heads=4, num_kv_heads=2, head_dim_qk=16).resolve("plan")
    assert {problem: 1}[same.problem("decode", "paged", torch.device("cpu"))] == 1
    assert hash(replace(problem, phase="mixed")) != hash(problem)
    copy = pickle.loads(pickle.dumps(problem))
    assert copy == problem
    assert "_hash" not in vars(copy), "another process hashes strings differently"


def test_one_request_on_a_gpu_knows_its_lengths_on_the_host():
    tables = one_request(3, 700, torch.device("meta"))
    host = tables.on_host()
    assert (host.qo_lens, host.kv_lens, host.kv_indptr) == ([3], [700], [0, 700])
    assert one_request(0, 0, torch.device("cpu")).on_host().kv_lens == [0]
