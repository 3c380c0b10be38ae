"""Queries and keys that `attention.cuh` rotates on the fly, against the definition in float64."""

import copy
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paged_steps import TOLERANCE, Step, close, options_of_plans, random, replays

from warploom.attention import (
    AttentionVariant,
    BatchAttention,
    BatchDecodeWithPagedKVCacheWrapper,
    BatchPrefillWithRaggedKVCacheWrapper,
    single_decode_with_kv_cache,
    single_prefill_with_kv_cache_return_lse,
)
from warploom.attention.variants import BUILTIN_VARIANTS
from warploom.core.errors import UnsupportedError
from warploom.core.testing import assert_close, cases

pytestmark = pytest.mark.gpu(min_arch=80)

ROPE = {"pos_encoding_mode": "ROPE_LLAMA"}
LLAMA3 = {**ROPE, "rope_theta": 5e5}
SPACING = {torch.float16: 2**-10, torch.bfloat16: 2**-7}  # of numbers, relative to them: at most


def turn(x, positions, rope_scale=1.0, rope_theta=1e4):
    """Rows ``[rows, heads, dim]`` rotated in float64, by frequencies that are rounded to float32."""
    half = x.shape[-1] // 2
    exponents = torch.arange(half, dtype=torch.float64, device=x.device) / half
    angles = positions.double()[:, None, None] * (rope_theta**-exponents / rope_scale).float().double()
    a, b = x[..., :half].double(), x[..., half:].double()
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


def turned(step, rope_scale=1.0, rope_theta=1e4, **_):
    """The step with queries and keys as the kernel multiplies them: rotated, and rounded to the queries' dtype."""
    found = copy.copy(step)
    q, k = step.q.double(), step.cache[0].double()
    first = 0
    for request, (qo_len, kv_len) in enumerate(zip(step.qo_lens, step.kv_lens, strict=True)):
        of_keys = torch.arange(kv_len, device="cuda")
        mine = slice(first, first + qo_len)
        q[mine] = turn(q[mine], torch.arange(kv_len - qo_len, kv_len, device="cuda"), rope_scale, rope_theta)
        places = step.table[request][of_keys // step.page_size].long(), of_keys % step.page_size
        k[places] = turn(k[places], of_keys, rope_scale, rope_theta)
        first += qo_len
    found.q, found.cache = q.to(step.dtype), (k.to(step.dtype), step.cache[1])
    return found


def check(step, **options):
    """Against products of the same rounded queries and keys."""
    given = {name: value for name, value in options.items() if name not in ("rope_scale", "rope_theta")}
    close(step.run("cuda", **ROPE, **options), turned(step, **options).reference(**given), step.dtype)


def close_to_exact(got, want, dtype):
    """Where products are those of queries and keys that are not rounded once more.

    Rounding rotated components puts an error of about SPACING sqrt(2 / 12) on a logit of normal queries and keys. Largest
    of many: six times that.
    """
    noise = 6 * math.sqrt(2 / 12) * SPACING[dtype]
    assert_close(got[0], want[0], rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] + noise, what="out")
    assert_close(got[1], want[1], rtol=1e-3, atol=5e-3 + noise * math.log2(math.e), what="lse")


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_steps(data):
    batch = data.draw(st.integers(1, 12))
    kv_heads, group = data.draw(st.sampled_from([1, 2, 3, 8])), data.draw(st.integers(1, 17))
    step = Step(
        [data.draw(st.sampled_from([0, 1, 2, 5, 16, 33, 130])) for _ in range(batch)],
        [data.draw(st.integers(0, 1500)) for _ in range(batch)],
        heads=(kv_heads * group, kv_heads),
        dim=data.draw(st.sampled_from([8, 16, 24, 40, 64, 72, 80, 96, 112, 128, 136, 160, 192, 256])),
        page_size=data.draw(st.sampled_from([1, 3, 16, 64, 256])),
        dtype=data.draw(st.sampled_from([torch.float16, torch.bfloat16])),
        seed=data.draw(st.integers(0, 1000)),
    )
    scaling = {
        "rope_scale": data.draw(st.sampled_from([1.0, 8.0, 0.3])),
        "rope_theta": data.draw(st.sampled_from([1e4, 5e5, 50.0])),
    }
    check(step, **scaling, **data.draw(options_of_plans([-1, -1, 0, 70, 1000])))


@pytest.mark.parametrize(
    *cases(dim=[64, 128, 256], dtype=[torch.float16, torch.bfloat16],
           lens=[([1] * 4, [1, 70, 900, 4000]), ([200, 3], [777, 3])])
)  # fmt: skip
def test_the_reference_itself(case):
    step = Step(*case.lens, dim=case.dim, dtype=case.dtype)
    close_to_exact(step.run("cuda", causal=True, **LLAMA3), step.reference(causal=True, **LLAMA3), case.dtype)


@pytest.mark.parametrize(
    *cases(lens=[([1], [60_000]), ([1, 1, 1], [20_000, 3, 999]), ([300, 1, 17], [9000, 4097, 1023])], dim=[64, 128, 256])
)  # fmt: skip
def test_items_that_many_blocks_share(case):
    check(Step(*case.lens, dim=case.dim), causal=True)


@pytest.mark.parametrize("qo_len", [1, 40])
@pytest.mark.parametrize("kv_len", [100_003, 1_000_001])
@pytest.mark.parametrize("dim", [64, 128])
def test_long_positions(dim, kv_len, qo_len):
    # Few keys are seen, so that each angle counts.
    step = Step([qo_len], [kv_len], heads=(4, 1), dim=dim)
    check(step, causal=True, window_left=20)
    check(step, causal=True, window_left=20, rope_theta=5e5)
    # All turn alike: far ahead is as at the start.
    near = copy.copy(step)
    near.kv_lens = [qo_len + 20]
    near.cache, near.table = tuple(x.clone() for x in step.cache), step.table
    last = torch.arange(kv_len - qo_len - 20, kv_len, device="cuda")
    places = step.table[0][last // 16].long(), last % 16
    rows = torch.arange(qo_len + 20, device="cuda")
    for to, x in zip(near.cache, step.cache, strict=True):
        to[near.table[0][rows // 16].long(), rows % 16] = x[places]
    want = near.reference(causal=True, window_left=10, **ROPE)
    close_to_exact(step.run(causal=True, window_left=10, **ROPE), want, torch.float16)


@pytest.mark.parametrize(
    *cases(
        lens=[([1] * 5, [1, 64, 700, 9000, 33]), ([100, 1, 16], [300, 20, 16])], dim=[16, 64, 80, 128, 256],
        dtype=[torch.float16, torch.bfloat16], dtype_kv=[torch.float8_e4m3fn, torch.float8_e5m2],
    )
)  # fmt: skip
def test_fp8_caches(case):
    step = Step(*case.lens, dim=case.dim, dtype=case.dtype, dtype_kv=case.dtype_kv)
    check(step, causal=True)


@pytest.mark.parametrize("dtype_kv", [torch.float16, torch.float8_e5m2])
@pytest.mark.parametrize("qo_len", [1, 50])
def test_the_largest_numbers_of_float16_do_not_overflow(dtype_kv, qo_len):
    # Rotated by 45 degrees, a pair of the largest is sqrt(2) times as large.
    step = Step([qo_len] * 3, [50, 200, 1000], dim=128, dtype_kv=dtype_kv)
    keys = random(*step.cache[0].shape, seed=5).sign() * torch.finfo(dtype_kv).max
    step.cache = (keys.to(dtype_kv), step.cache[1])
    step.q = (step.q.sign() * 50_000).to(torch.float16)
    got = step.run(causal=True, sm_scale=1e-11, **ROPE)
    want = step.reference(causal=True, sm_scale=1e-11, **ROPE)
    assert want[1].isfinite().all()
    close_to_exact(got, want, torch.float16)


@pytest.mark.parametrize(
    "variant", [each for each in BUILTIN_VARIANTS if each.name not in ("rope", "alibi")], ids=lambda v: v.name
)
@pytest.mark.parametrize("dim", [64, 256])
def test_with_every_variant(variant, dim):
    qo_lens, kv_lens = [3, 1, 0, 6, 1, 60], [700, 20, 5, 6, 0, 90]
    step = Step(qo_lens, kv_lens, heads=(4, 2), dim=dim)
    options = variant.example(4, qo_lens, kv_lens)
    check(step, **{k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in options.items()})


MINE = AttentionVariant(
    name="every_third_and_a_bias",
    logits="logits + bias[qo_head_idx] * kv_idx",
    mask="(qo_pos - kv_idx) % 3 != 1",
    tensors={"bias": torch.float32},
    reference_logits=lambda logits, at: logits + at.bias[at.qo_head_idx] * at.kv_idx,
    reference_mask=lambda at: (at.qo_pos - at.kv_idx) % 3 != 1,
)


@pytest.mark.parametrize("soft_cap", [None, 3.0])
@pytest.mark.parametrize("rows", [1, 70])
def test_with_a_users_variant(rows, soft_cap):
    q, k, v = random(rows, 4, 64), random(300, 2, 64, seed=1), random(300, 2, 64, seed=2)
    options = {"causal": True, "logits_soft_cap": soft_cap, "variant": MINE}
    options["variant_args"] = (torch.linspace(-0.02, 0.02, 4, device="cuda"),)
    got = single_prefill_with_kv_cache_return_lse(q, k, v, **LLAMA3, **options, backend="cuda")
    wide = (x.double() for x in (q, k, v))
    want = single_prefill_with_kv_cache_return_lse(*wide, **LLAMA3, **options, backend="reference")
    close_to_exact(got, want, torch.float16)


def test_rows_end_to_end_and_of_one_request():
    qo_indptr = torch.tensor([0, 100, 101, 101, 400], dtype=torch.int32, device="cuda")
    kv_indptr = torch.tensor([0, 700, 1300, 1300, 1600], dtype=torch.int32, device="cuda")
    q, k, v = random(400, 8, 64), random(1600, 2, 64, seed=1), random(1600, 2, 64, seed=2)
    got = []
    for backend, x in (("cuda", (q, k, v)), ("reference", [x.double() for x in (q, k, v)])):
        ragged = BatchPrefillWithRaggedKVCacheWrapper(backend=backend)
        ragged.plan(qo_indptr, kv_indptr, 8, 2, 64, causal=True, q_data_type=x[0].dtype, **LLAMA3)
        got.append(ragged.run_return_lse(*x))
        one = x[0], x[1][:700], x[2][:700]
        got.append(single_prefill_with_kv_cache_return_lse(*one, causal=True, **LLAMA3, backend=backend))
        got.append(single_decode_with_kv_cache(x[0][0], *one[1:], **LLAMA3, backend=backend, return_lse=True))
    for mine, reference in zip(got[:3], got[3:], strict=True):
        close_to_exact(mine, reference, torch.float16)


def test_rows_that_are_not_aligned():
    q, k, v = random(5, 2, 72)[..., 3:67], random(90, 2, 66, seed=1)[..., 1:65], random(90, 2, 64, seed=2)
    got = single_prefill_with_kv_cache_return_lse(q, k, v, causal=True, **ROPE, backend="cuda")
    wide = (x.double() for x in (q, k, v))
    want = single_prefill_with_kv_cache_return_lse(*wide, causal=True, **ROPE, backend="reference")
    close_to_exact(got, want, torch.float16)


def test_auto_takes_the_kernel_for_decodes_and_mixed_batches():
    step = Step([1, 30], [200, 90], heads=(8, 8))
    attention = step.plan(BatchAttention(), causal=True, logits_soft_cap=5.0, **ROPE)
    assert attention.planned().selection.backend.name == "cuda"
    decode = BatchDecodeWithPagedKVCacheWrapper()
    one = torch.tensor([0, 1], dtype=torch.int32, device="cuda")
    decode.plan(one, one[:1], one[1:], 8, 8, 64, 16, **ROPE)
    assert decode.planned().selection.backend.name == "cuda"
    with pytest.raises(UnsupportedError, match="does not rotate"):
        step.plan(BatchAttention(backend="hopper"), **ROPE)


def test_a_plan_serves_many_layers():
    steps = [Step([1, 40, 3], [512, 96, 32], seed=seed) for seed in range(3)]
    attention = steps[0].plan(BatchAttention(backend="cuda"), causal=True, **ROPE)
    for step in [*steps, *steps]:
        step.table = steps[0].table  # whole pages: every row is some request's
        close(attention.run(step.q, step.cache), turned(step).reference(causal=True), torch.float16)


@pytest.mark.parametrize("dim", [64, 256])
def test_replays_take_the_positions_that_they_find(dim):
    step = Step([1] * 4, [300, 2000, 64, 5], dim=dim)
    for result in replays(step, "cuda", causal=True, **LLAMA3):
        close(result, turned(step, rope_theta=5e5).reference(causal=True), torch.float16)


def test_runs_are_the_same():
    step = Step([1] * 5 + [90], [4000, 70, 0, 900, 1, 2222], dim=128)
    attention = step.plan(BatchAttention(backend="cuda"), causal=True, **ROPE)
    first = attention.run(step.q, step.cache)
    for _ in range(20):
        again = attention.run(step.q, step.cache)
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])
