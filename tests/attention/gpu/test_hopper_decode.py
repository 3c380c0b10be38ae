"""The kernel of `attention_decode.cuh`: small tiles and large ones, shares, boxes of pages, types, variants, graphs."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paged_steps import Step, close, options_of_plans, random

from warploom.attention import (
    BatchDecodeWithPagedKVCacheWrapper,
    CUDAGraphBatchDecodeWithPagedKVCacheWrapper,
    single_decode_with_kv_cache,
)
from warploom.attention.backends.hopper.decode import HopperDecode
from warploom.core.errors import UnsupportedError
from warploom.core.testing import assert_close, cases

pytestmark = pytest.mark.gpu(arch=90)

BACKEND = "hopper_decode"


@pytest.fixture(params=[False, True], ids=["small", "large"])
def tile(request, monkeypatch):
    """Which tiles there are, whatever the batch."""
    monkeypatch.setattr(HopperDecode, "has_wide_tiles", lambda *_: request.param)


def check(step, **options):
    cache = tuple(x.double() for x in step.cache)
    want = step.plan_decode("reference", torch.float64, **options).run_return_lse(step.q.double(), cache)
    got = step.plan_decode(BACKEND, **options).run_return_lse(step.q, step.cache)
    close(got, want, step.dtype)


@pytest.mark.parametrize(
    *cases(
        page_size=[16, 32, 48, 256], dim=[64, 128], dtype=[torch.float16, torch.bfloat16],
        kv_lens=[[128, 256, 1, 0], [127, 129, 1000, 17], [1024, 30000, 300]],
    )
)  # fmt: skip
def test_pages_of_any_size(case, tile):
    check(
        Step(
            [1] * len(case.kv_lens),
            case.kv_lens,
            heads=(16, 4),
            dim=case.dim,
            page_size=case.page_size,
            dtype=case.dtype,
        )
    )


@pytest.mark.parametrize("dims", [(16, 16), (80, 80), (96, 96), (112, 64), (192, 128), (256, 256)])
@pytest.mark.parametrize("dtype_kv", [None, torch.float8_e4m3fn])
def test_heads_of_other_sizes(dims, dtype_kv, tile):
    lens = [128, 1000, 300, 129, 1, 5000]
    check(Step([1] * 6, lens, heads=(8, 4), dim=dims[0], dim_v=dims[1], dtype=torch.bfloat16, dtype_kv=dtype_kv))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype_kv", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_fp8_caches(dtype, dtype_kv, dim, tile):
    step = Step([1] * 5, [1, 64, 700, 9000, 33], heads=(16, 4), dim=dim, dtype=dtype, dtype_kv=dtype_kv)
    every_byte = torch.arange(256, dtype=torch.uint8, device="cuda").view(dtype_kv)
    every_number = every_byte[every_byte.float().isfinite()]
    for x in step.cache:
        x.view(torch.uint8).view(-1)[: len(every_number)] = every_number.view(torch.uint8)
    check(step, sm_scale=0.01)


@pytest.mark.parametrize("size", [1e-30, 1e-4, 1.0, 3e4, 1e30])
def test_queries_of_any_size_meet_fp8_keys(size, tile):
    """Products are of float16: rows of bfloat16 queries are scaled into its range."""
    step = Step([1] * 3, [100, 700, 33], heads=(16, 4), dim=128, dtype=torch.bfloat16, dtype_kv=torch.float8_e4m3fn)
    step.q *= size
    step.q[1, 3] *= 1e-6
    step.q[2, 5] = 0
    check(step, sm_scale=0.1 / size)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_batches(tile, data):
    batch = data.draw(st.sampled_from([1, 3, 20, 100]))
    kv_heads, qo_len = data.draw(st.sampled_from([1, 2, 4, 8, 12])), data.draw(st.integers(1, 4))
    group = data.draw(st.integers(1, 16 // qo_len))
    dtype = data.draw(st.sampled_from([torch.float16, torch.bfloat16]))
    step = Step(
        [qo_len] * batch,
        [data.draw(st.sampled_from([0, 1, 100, 128, 640, 3000])) + data.draw(st.integers(0, 3)) for _ in range(batch)],
        heads=(kv_heads * group, kv_heads),
        dim=data.draw(st.sampled_from([64, 128])),
        page_size=data.draw(st.sampled_from([16, 32, 64, 128])),
        dtype=dtype,
        dtype_kv=data.draw(st.sampled_from([None, None, torch.float8_e4m3fn])),
        seed=data.draw(st.integers(0, 1000)),
    )
    check(step, **data.draw(options_of_plans([-1, -1, 0, 200])))


def test_rows_of_one_request(tile):
    for layout in ("NHD", "HND"):
        shape = (700, 8, 128) if layout == "NHD" else (8, 700, 128)
        q, k, v = random(32, 128), random(*shape, seed=1), random(*shape, seed=2)
        got = single_decode_with_kv_cache(q, k, v, layout, backend=BACKEND)
        want = single_decode_with_kv_cache(q.double(), k.double(), v.double(), layout, backend="reference")
        assert_close(got, want, rtol=4e-3, atol=4e-3)


@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_one_tensor_for_keys_and_values(layout, tile):
    step = Step([1] * 3, [500, 77, 2000], heads=(16, 4), dim=128)
    joined = torch.stack(step.cache, 1)
    joined = joined if layout == "NHD" else joined.transpose(2, 3).contiguous()
    out = []
    for backend in (BACKEND, "reference"):
        decode = BatchDecodeWithPagedKVCacheWrapper(kv_layout=layout, backend=backend)
        lens = torch.tensor(step.kv_lens, dtype=torch.int32, device="cuda")
        decode.plan(None, None, None, *step.heads, 128, 16, block_tables=step.table, seq_lens=lens)
        out.append(decode.run_return_lse(step.q, joined))
    close(*out, step.dtype)


def test_runs_are_the_same_and_leave_nothing_behind(tile):
    step = Step([1] * 9, [4000, 70, 0, 900, 8000, 1, 64, 65, 2222], heads=(16, 4), dim=128)
    decode = step.plan_decode(BACKEND)
    first = decode.run_return_lse(step.q, step.cache)
    for _ in range(20):
        again = decode.run_return_lse(step.q, step.cache)
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])
    work = decode.planned().schedule.work
    assert decode.planned().state["arrivals"][: work.groups * work.lanes].eq(0).all()


def test_deterministic_results_do_not_depend_on_the_batch():
    step = Step([1] * 200, [5000, 64, 777, 130] * 50, heads=(16, 8), dim=64)
    together = step.plan_decode(BACKEND, deterministic=True).run_return_lse(step.q, step.cache)
    for request in (0, 1, 2, 3, 150):
        alone = Step([1], step.kv_lens[request : request + 1], heads=(16, 8), dim=64)
        alone.cache, alone.table, alone.q = step.cache, step.table[request : request + 1], step.q[request : request + 1]
        out, lse = alone.plan_decode(BACKEND, deterministic=True).run_return_lse(alone.q, alone.cache)
        assert torch.equal(out, together[0][request : request + 1])
        assert torch.equal(lse, together[1][request : request + 1])


def test_an_item_for_each_sm_has_large_tiles():
    steps = [Step([1] * batch, [9, 300] * (batch // 2), heads=(16, 8)) for batch in (2, 16, 60)]
    assert [step.plan_decode(BACKEND).planned().schedule.work.tile_keys for step in steps] == [64, 128, 64]
    for step in steps:
        check(step)


def test_addresses_beyond_32_bits(tile):
    pages = 2**31 // (16 * 4 * 128) + 1000
    k, v = (torch.full((pages, 16, 4, 128), torch.nan, dtype=torch.float16, device="cuda") for _ in range(2))
    table = (pages - 1 - torch.arange(40, device="cuda", dtype=torch.int32))[None]
    rows = [x[table[0].long()] for x in (k, v)]
    for number, x in enumerate((k, v)):
        x[table[0].long()] = random(*rows[number].shape, seed=number + 1)
    q, lens = random(1, 16, 128), torch.tensor([637], dtype=torch.int32, device="cuda")
    out = []
    for backend, cache, pages_of in (
        (BACKEND, (k, v), table),
        ("cuda", tuple(x[table[0].long()] for x in (k, v)), None),
    ):
        decode = BatchDecodeWithPagedKVCacheWrapper(backend=backend)
        own = torch.arange(40, device="cuda", dtype=torch.int32)[None] if pages_of is None else pages_of
        decode.plan(None, None, None, 16, 4, 128, 16, block_tables=own, seq_lens=lens)
        out.append(decode.run_return_lse(q, cache))
    close(*out, torch.float16)


def test_replays_plan_for_the_lengths_that_they_find(tile):
    step = Step([1] * 4, [2000] * 4, heads=(16, 4), dim=128)
    buffers = [torch.zeros(n, dtype=torch.int32, device="cuda") for n in (5, 600, 4)]
    decode = CUDAGraphBatchDecodeWithPagedKVCacheWrapper(None, *buffers, backend=BACKEND)

    def plan():
        decode.plan(*step.packed_table(), *step.heads, 128, 16)

    plan()
    decode.run_return_lse(step.q, step.cache)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = decode.run_return_lse(step.q, step.cache)
    for kv_lens in ([300, 2000, 64, 5], [1, 1, 1, 1], [16, 1999, 3, 5]):
        step.kv_lens = kv_lens
        plan()
        graph.replay()
        close(got, step.plan_decode("cuda").run_return_lse(step.q, step.cache), step.dtype)


def test_refuses_with_its_reasons():
    with pytest.raises(UnsupportedError, match="multiple of 16 entries"):
        Step([1], [100], page_size=8).plan_decode(BACKEND)
    with pytest.raises(UnsupportedError, match="at most 16 rows"):
        Step([4], [100], heads=(16, 2)).plan_decode(BACKEND)
