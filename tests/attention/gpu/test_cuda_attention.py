"""The kernels of `attention.cuh`: schedules, shared items, addresses, layouts, variants, graphs."""

import pytest
import torch
from attention_oracle import paged_batch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paged_steps import Step, close, options_of_plans, random, replays, why_no_kernel

from warploom.attention import (
    AttentionVariant,
    BatchAttention,
    BatchDecodeWithPagedKVCacheWrapper,
    BatchPrefillWithPagedKVCacheWrapper,
    BatchPrefillWithRaggedKVCacheWrapper,
    single_prefill_with_kv_cache_return_lse,
)
from warploom.attention.schedule import WorkSchedule
from warploom.core.testing import cases

pytestmark = pytest.mark.gpu(min_arch=80)


@pytest.fixture(params=["cuda", "hopper", "cutlass"])
def kernel(request):
    """A backend with kernels of its own."""
    if why := why_no_kernel(request.param):
        pytest.skip(why)
    return request.param


def starts_of(attention):
    return attention.planned().state["starts"].cpu()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_device_divides_work_as_the_host_does(data):
    batch = data.draw(st.integers(1, 40))
    kv_lens = [data.draw(st.integers(0, 5000)) for _ in range(batch)]
    qo_lens = [data.draw(st.integers(0, 200)) for _ in range(batch)]
    heads = data.draw(st.sampled_from([(4, 1), (8, 8), (10, 2), (24, 6)]))
    step = Step(qo_lens, kv_lens, heads=heads)
    options = {"causal": data.draw(st.booleans()), "window_left": data.draw(st.sampled_from([-1, 70]))}
    attention = step.plan(BatchAttention(backend="cuda"), **options)
    starts, shape = starts_of(attention), attention.planned().schedule.work
    schedule = WorkSchedule.of(qo_lens, kv_lens, shape)
    for group in range(shape.groups):
        shares = list(schedule.shares(group))
        for lane in range(shape.lanes):
            request, head, tile, at, units = starts[group * shape.lanes + lane, :5].tolist()
            assert units == schedule.begins[group + 1] - schedule.begins[group]
            if shares:
                item, begin, _ = shares[0]
                assert (request, head, tile) == (
                    schedule.requests[item], schedule.heads[item] + lane, schedule.tiles[item],
                )  # fmt: skip
                assert at == -begin


@pytest.mark.parametrize(
    *cases(
        lens=[([1], [60_000]), ([1, 1, 1], [20_000, 3, 999]), ([300, 1, 17], [9000, 4097, 1023]), ([5000], [5000])],
        heads=[(4, 1), (8, 8), (20, 4)], dtype=[torch.float16, torch.bfloat16],
    )
)  # fmt: skip
def test_items_that_many_blocks_share(case):
    qo_lens, kv_lens = case.lens
    Step(qo_lens, kv_lens, heads=case.heads, dtype=case.dtype).check(causal=True)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_steps(data):
    batch = data.draw(st.integers(1, 12))
    kv_heads, group = data.draw(st.sampled_from([1, 2, 3, 8])), data.draw(st.integers(1, 17))
    step = Step(
        [data.draw(st.sampled_from([0, 1, 2, 5, 16, 33, 130])) for _ in range(batch)],
        [data.draw(st.integers(0, 1500)) for _ in range(batch)],
        heads=(kv_heads * group, kv_heads),
        dim=data.draw(st.sampled_from([8, 40, 64, 96, 128, 160, 256])),
        page_size=data.draw(st.sampled_from([1, 3, 16, 64, 256])),
        dtype=data.draw(st.sampled_from([torch.float16, torch.bfloat16])),
        seed=data.draw(st.integers(0, 1000)),
    )
    step.check(**data.draw(options_of_plans([-1, -1, 0, 70, 1000])))


@pytest.mark.parametrize(
    *cases(
        lens=[([1] * 5, [1, 64, 700, 9000, 33]), ([100, 1, 16], [300, 20, 16])], dim=[16, 64, 128, 256],
        dtype=[torch.float16, torch.bfloat16], dtype_kv=[torch.float8_e4m3fn, torch.float8_e5m2],
    )
)  # fmt: skip
def test_fp8_caches(case):
    qo_lens, kv_lens = case.lens
    step = Step(qo_lens, kv_lens, dim=case.dim, dtype=case.dtype, dtype_kv=case.dtype_kv)
    every_byte = torch.arange(256, dtype=torch.uint8, device="cuda").view(case.dtype_kv)
    every_number = every_byte[every_byte.float().isfinite()]
    for x in step.cache:
        flat = x.view(torch.uint8).view(-1)
        flat[: len(every_number)] = every_number.view(torch.uint8)
    step.check(causal=True, sm_scale=0.01)


def test_runs_are_the_same_and_leave_nothing_behind(kernel):
    step = Step([1] * 9, [4000, 70, 0, 900, 8000, 1, 64, 65, 2222])
    attention = step.plan(BatchAttention(backend=kernel))
    first = attention.run(step.q, step.cache)
    for _ in range(20):
        again = attention.run(step.q, step.cache)
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])
    work = attention.planned().schedule.work
    assert attention.planned().state["arrivals"][: work.groups * work.lanes].eq(0).all()


@pytest.mark.parametrize("qo_len", [1, 4, 100])
def test_deterministic_results_do_not_depend_on_the_batch(qo_len, kernel):
    kv_lens = [5000, 64, 777, 130]
    step = Step([qo_len] * 4, kv_lens)
    together = step.plan(BatchAttention(backend=kernel), causal=True, deterministic=True).run(step.q, step.cache)
    for request, kv_len in enumerate(kv_lens):
        alone = Step([qo_len], [kv_len])
        alone.cache, alone.table = step.cache, step.table[request : request + 1]
        alone.q = step.q[request * qo_len : (request + 1) * qo_len]
        out, lse = alone.plan(BatchAttention(backend=kernel), causal=True, deterministic=True).run(alone.q, alone.cache)
        assert torch.equal(out, together[0][request * qo_len : (request + 1) * qo_len])
        assert torch.equal(lse, together[1][request * qo_len : (request + 1) * qo_len])


def test_short_queries_after_long_ones():
    """Warps of a block may be apart: keys of the long query's last tile must not be overwritten for the short one."""
    step = Step([20, 1] * 400, [152, 6] * 400, heads=(4, 1), dim=128)
    want = step.reference(causal=True)
    for _ in range(5):
        close(step.run("cuda", causal=True), want, step.dtype)


def test_addresses_beyond_32_bits(kernel):
    step = Step([1, 30], [200, 90], heads=(8, 8), dim=128)
    want = step.reference(causal=True)
    few = step.cache[0].shape[0]
    pages = 2**31 // step.cache[0][0].numel() + few
    far = [torch.empty(pages, *x.shape[1:], dtype=x.dtype, device="cuda") for x in step.cache]
    for to, x in zip(far, step.cache, strict=True):
        to[-few:] = x
    step.cache, step.table = tuple(far), step.table + (pages - few)
    close(step.run(kernel, causal=True), want, torch.float16)


@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_one_tensor_for_keys_and_values(layout, kernel):
    b = paged_batch([1] * 3, [33, 500, 7], heads=8, kv_heads=2, dim=128, page_size=16, dtype=torch.bfloat16)
    k, v = (x.cuda() for x in (b.k_cache, b.v_cache))
    both = torch.stack([k, v], 1)
    both = both if layout == "NHD" else both.transpose(2, 3).contiguous()
    tables = [x.cuda() for x in (b.kv_indptr, b.kv_indices, b.last_page_len)]
    got = []
    for backend in (kernel, "reference"):
        prefill = BatchPrefillWithPagedKVCacheWrapper(kv_layout=layout, backend=backend)
        prefill.plan(torch.arange(4).int().cuda(), *tables, 8, 2, 128, 16, q_data_type="bfloat16")
        got.append(prefill.run_return_lse(b.q.cuda(), both))
    close(got[0], got[1], torch.bfloat16)
    if kernel != "hopper":
        decode = BatchDecodeWithPagedKVCacheWrapper(kv_layout=layout, backend=kernel)
        decode.plan(*tables, 8, 2, 128, 16, data_type="bfloat16")
        close(decode.run_return_lse(b.q.cuda(), both), got[1], torch.bfloat16)


def test_rows_end_to_end_and_of_one_request(kernel):
    qo_indptr = torch.tensor([0, 100, 101, 101, 400], dtype=torch.int32, device="cuda")
    kv_indptr = torch.tensor([0, 700, 1300, 1300, 1600], dtype=torch.int32, device="cuda")
    q, k, v = random(400, 8, 64), random(1600, 2, 64, seed=1), random(1600, 2, 64, seed=2)
    got = []
    for backend in (kernel, "reference"):
        ragged = BatchPrefillWithRaggedKVCacheWrapper(backend=backend)
        ragged.plan(qo_indptr, kv_indptr, 8, 2, 64, causal=True)
        got.append(ragged.run_return_lse(q, k, v))
        single = single_prefill_with_kv_cache_return_lse(q, k[:700], v[:700], causal=True, backend=backend)
        got.append(single)
    close(got[0], got[2], torch.float16)
    close(got[1], got[3], torch.float16)


def test_rows_that_are_not_aligned(kernel):
    q, k, v = random(5, 2, 72)[..., 3:67], random(90, 2, 66, seed=1)[..., 1:65], random(90, 2, 64, seed=2)
    out = torch.zeros(5, 2, 65, dtype=torch.float16, device="cuda")[..., 1:]
    want = single_prefill_with_kv_cache_return_lse(q, k, v, causal=True, backend="reference")
    close(single_prefill_with_kv_cache_return_lse(q, k, v, causal=True, backend=kernel, out=out), want, torch.float16)
    assert torch.equal(out, single_prefill_with_kv_cache_return_lse(q, k, v, causal=True, backend=kernel)[0])


CLIPPED = AttentionVariant(
    name="clipped_bias",
    logits="logits + gain * bias[qo_head_idx * 8 + min(abs(qo_pos - kv_idx), 7)]",
    mask="(qo_idx + kv_idx) % step != 0",
    tensors={"bias": torch.float32},
    scalars={"gain": float, "step": int},
    reference_logits=lambda logits, at: (
        logits + at.gain * at.bias[at.qo_head_idx, (at.qo_pos - at.kv_idx).abs().clamp(max=7)]
    ),
    reference_mask=lambda at: (at.qo_idx + at.kv_idx) % at.step != 0,
)


@pytest.mark.parametrize("soft_cap", [None, 3.0])
def test_a_users_variant(soft_cap, kernel):
    q, k, v = random(70, 4, 64), random(300, 2, 64, seed=1), random(300, 2, 64, seed=2)
    arguments = (torch.randn(4, 8, device="cuda"), 0.5, 3)
    got = [
        single_prefill_with_kv_cache_return_lse(
            q, k, v, causal=True, logits_soft_cap=soft_cap, variant=CLIPPED, variant_args=arguments, backend=backend
        )
        for backend in (kernel, "reference")
    ]
    close(got[0], got[1], torch.float16)


def test_replays_plan_for_the_lengths_that_they_find(kernel):
    step = Step([1] * 4, [300, 2000, 64, 5])
    for result in replays(step, kernel):
        close(result, step.reference(), torch.float16)


def test_the_workspace_does_not_grow_with_the_problem(kernel):
    attention = BatchAttention(backend=kernel)
    small = Step([1], [5], dim=128).plan(attention).planned()
    large = Step([500] * 3, [900] * 3, dim=128).plan(attention).planned()
    sizes = [sum(x.nbytes for x in plan.workspace.values()) for plan in (small, large)]
    assert sizes[0] == sizes[1] < 64 * 2**20


def test_explain_shows_the_balance():
    text = str(Step([1] * 3, [9000, 64, 500]).plan(BatchAttention(backend="cuda")).explain())
    assert "blocks, 2 heads at a time" in text
    assert "balance: " in text
