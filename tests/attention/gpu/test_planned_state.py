"""Steps that follow one another on a GPU: tables that the planner writes, what is kept from one plan to the next, streams."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paged_steps import Step, close

from warploom.attention import (
    BatchAttention,
    BatchDecodeWithPagedKVCacheWrapper,
    BatchPrefillWithPagedKVCacheWrapper,
    BatchPrefillWithRaggedKVCacheWrapper,
)

pytestmark = pytest.mark.gpu(min_arch=80)

SIZES, PAGE_SIZE = (8, 2, 64), 16


def ints(values):
    return torch.tensor(values, dtype=torch.int32).cuda()


def offsets(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).int().cuda()


def packed(step):
    """Offsets, page numbers and last-page lengths of a step."""
    counts = [-(-n // PAGE_SIZE) for n in step.kv_lens]
    pages = [step.table[i, :n] for i, n in enumerate(counts)]
    return offsets(counts), torch.cat(pages), ints([(n - 1) % PAGE_SIZE + 1 if n else 0 for n in step.kv_lens])


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_planner_writes_lengths_and_offsets(data):
    batch, seed = data.draw(st.sampled_from([0, 1, 31, 1023, 1024, 1025, 5000])), data.draw(st.integers(0, 1000))
    lens = torch.randint(0, 70, (batch,), generator=torch.Generator().manual_seed(seed)).tolist()
    counts = [-(-n // PAGE_SIZE) for n in lens]
    last = [(n - 1) % PAGE_SIZE + 1 if n else 0 for n in lens]
    pages = torch.zeros(sum(counts), dtype=torch.int32, device="cuda")
    decode = BatchDecodeWithPagedKVCacheWrapper(backend="cuda")
    decode.plan(offsets(counts), pages, ints(last), *SIZES, PAGE_SIZE)
    assert decode.planned().tables.kv_lens.tolist() == lens
    step = BatchAttention(backend="cuda")
    step.plan(offsets([1] * batch), ints(lens), pages, *SIZES, 64, dtype_q="float16", page_size=PAGE_SIZE)
    assert step.planned().tables.kv_indptr.tolist() == offsets(counts).tolist()
    rows = BatchPrefillWithRaggedKVCacheWrapper(backend="cuda")
    rows.plan(offsets([1] * batch), offsets(lens), *SIZES)
    assert rows.planned().tables.kv_lens.tolist() == lens
    starts = [wrapper.planned().state["starts"][:132].tolist() for wrapper in (decode, step)]
    given = BatchAttention(backend="cuda")
    given.plan(offsets([1] * batch), offsets(counts), pages, ints(lens), *SIZES, 64, PAGE_SIZE, q_data_type="float16")
    want = given.planned().state["starts"][:132].tolist()
    assert starts[1] == want
    if batch:  # a wrapper for decodes has other tiles, which divide the same units
        assert sum(row[4] for row in starts[0]) > 0


def test_steps_without_a_synchronisation():
    """Each step's tables are those of the step before, overwritten on the device while earlier launches may still run."""
    steps = [
        Step([1] * 4, lens, seed=i) for i, lens in enumerate([[300, 2000, 64, 5], [301, 0, 65, 6], [1, 1, 1, 900]])
    ]
    most = max(s.table.shape[1] for s in steps)
    cache = [torch.zeros(600, PAGE_SIZE, 2, 64, dtype=torch.float16, device="cuda") for _ in range(2)]
    q, table = torch.zeros(4, 8, 64, dtype=torch.float16, device="cuda"), ints([[0] * most] * 4)
    indptr, pages, last = ints([0] * 5), ints([0] * 600), ints([0] * 4)
    prepared = [(step, *packed(step), step.reference(), ints(step.kv_lens)) for step in steps * 2]
    decode, batch = BatchDecodeWithPagedKVCacheWrapper(backend="cuda"), BatchAttention(backend="cuda")
    qo, lens = offsets([1] * 4), ints([0] * 4)
    torch.cuda.synchronize()
    got = []
    for step, *tables, _, kv_lens in prepared:
        for mine, theirs in zip(
            (q, *cache, lens, indptr, pages, last), (step.q, *step.cache, kv_lens, *tables), strict=True
        ):
            mine[: len(theirs)].copy_(theirs)
        table[:, : step.table.shape[1]].copy_(step.table)
        torch.cuda.set_sync_debug_mode("error")
        try:
            decode.plan(indptr, pages, last, *SIZES, PAGE_SIZE)
            batch.plan(qo, lens, table, *SIZES, 64, dtype_q="float16", page_size=PAGE_SIZE)
            for _ in range(2):
                result = decode.run_return_lse(q, tuple(cache)), batch.run(q, tuple(cache))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        got.append(result)
    for (*_, want, _), results in zip(prepared, got, strict=True):
        for result in results:
            close(result, want, torch.float16)


def test_wrappers_that_share_a_workspace():
    a, b = Step([1] * 3, [900, 3, 4000]), Step([30, 1, 7], [300, 20, 70], seed=5)
    kinds = BatchDecodeWithPagedKVCacheWrapper, BatchPrefillWithPagedKVCacheWrapper
    size = max(kind(backend="cuda").workspace_size(*SIZES, PAGE_SIZE) for kind in kinds)
    buffer = torch.zeros(size, dtype=torch.uint8, device="cuda")
    decode, prefill = (kind(buffer, backend="cuda") for kind in kinds)
    decode.plan(*packed(a), *SIZES, PAGE_SIZE)
    prefill.plan(offsets(b.qo_lens), *packed(b), *SIZES, PAGE_SIZE, causal=True)
    for _ in range(2):
        close(decode.run_return_lse(a.q, a.cache), a.reference(), torch.float16)
        close(decode.run_return_lse(a.q, a.cache, window_left=70), a.reference(window_left=70), torch.float16)
        close(prefill.run_return_lse(b.q, b.cache), b.reference(causal=True), torch.float16)
        buffer.fill_(255)


def test_plans_on_two_streams():
    """A wrapper for each stream, at the same time."""
    steps = [Step([1] * 3, lens, seed=i) for i, lens in enumerate([[5000, 3, 900], [64, 8000, 1]])]
    tables, wants = [packed(step) for step in steps], [step.reference() for step in steps]
    wrappers = [BatchDecodeWithPagedKVCacheWrapper(backend="cuda") for _ in steps]
    streams = [torch.cuda.Stream() for _ in steps]
    torch.cuda.synchronize()
    got = []
    for _ in range(20):
        for stream, wrapper, table, step in zip(streams, wrappers, tables, steps, strict=True):
            with torch.cuda.stream(stream):
                wrapper.plan(*table, *SIZES, PAGE_SIZE)
                got.append(wrapper.run_return_lse(step.q, step.cache))
    torch.cuda.synchronize()
    for i, result in enumerate(got):
        close(result, wants[i % 2], torch.float16)


def test_a_plan_inside_a_graph():
    """Nothing that the wrapper keeps is of the graph's memory, nor the other way round."""
    step, other = Step([1] * 3, [900, 3, 400]), Step([1] * 5, [33, 5, 1, 1, 70], seed=3)
    table, wrapper = packed(step), BatchDecodeWithPagedKVCacheWrapper(backend="cuda")
    wrapper.plan(*table, *SIZES, PAGE_SIZE)
    wrapper.run_return_lse(step.q, step.cache)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        wrapper.plan(*table, *SIZES, PAGE_SIZE)
        captured = wrapper.run_return_lse(step.q, step.cache)
    for _ in range(3):
        wrapper.plan(*packed(other), *SIZES, PAGE_SIZE)
        graph.replay()
        close(wrapper.run_return_lse(other.q, other.cache), other.reference(), torch.float16)
        close(captured, step.reference(), torch.float16)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_plans_on_two_gpus():
    for device in ("cuda:0", "cuda:1", "cuda:0"):
        with torch.cuda.device(device):
            step = Step([1] * 3, [900, 3, 400])
            wrapper = BatchDecodeWithPagedKVCacheWrapper(backend="cuda")
            wrapper.plan(*packed(step), *SIZES, PAGE_SIZE)
            close(wrapper.run_return_lse(step.q, step.cache), step.reference(), torch.float16)
