"""`attention_hopper_fp8.cuh`: queries, keys and values of type e4m3, multiplied as they are."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paged_steps import Step, options_of_plans

from warploom.attention import BatchPrefillWithRaggedKVCacheWrapper
from warploom.core.errors import UnsupportedError
from warploom.core.testing import assert_close, cases, relative_error

pytestmark = pytest.mark.gpu(arch=90)

E4M3 = torch.float8_e4m3fn
# Weights have a mantissa of three bits: they are off by 1/16 at most, by 0.026 on average. Random sums are off as much.
LARGEST_OFF, OFF = 2.0**-4, 0.035
# Less than half the smallest number, 2^-9, becomes 0, beside a weight of at least 2^3.
LOST = 2.0**-13


def close(got, want, want_of_sizes, keys, largest):
    out, expected = got[0].double(), want[0].double()
    allowed = LARGEST_OFF * want_of_sizes[0].double() + 2.0**-8 * expected.abs() + LOST * keys * largest + 1e-6
    wrong = (out - expected).abs() > allowed
    assert not wrong.any(), (
        f"{int(wrong.sum())} of {out.numel()}, by {((out - expected).abs() / allowed).max():.3g} times"
    )
    assert out.isfinite().all()
    if expected.norm() > 0:
        assert relative_error(out, expected) <= OFF
    assert_close(got[1], want[1], rtol=1e-3, atol=1e-2, what="lse")


def check(step, **options):
    """Against the reference, and that of the values' sizes, which bounds what rounding can do."""
    want, cache = step.reference(**options), step.cache
    step.cache = cache[0], (cache[1].view(torch.uint8) & 0x7F).view(E4M3)
    of_sizes, step.cache = step.reference(**options), cache
    largest = cache[1].double().nan_to_num(0).abs().max()
    close(step.run("hopper", **options), want, of_sizes, max(step.kv_lens), largest)


@pytest.mark.parametrize(
    *cases(
        page_size=[8, 16, 24, 64, 128, 256], dim=[64, 128], causal=[True, False],
        kv_lens=[[128, 256, 1], [127, 129, 1000], [1024, 4097, 300]],
    )
)  # fmt: skip
def test_pages_of_any_size(case):
    step = Step([5, 70, 300], case.kv_lens, dim=case.dim, page_size=case.page_size, dtype=E4M3)
    check(step, causal=case.causal and min(case.kv_lens) > 300)


@pytest.mark.parametrize("group", [1, 3, 4, 8])
def test_rows_around_the_sizes_of_tiles(group):
    rows = [15, 16, 17, 31, 63, 64, 65, 128, 129, 1]
    kv_lens = [1500, 16, 700, 31, 5000, 64, 1000, 128, 3000, 9000]
    step = Step(rows, kv_lens, heads=(2 * group, 2), dim=128, dtype=E4M3)
    for options in ({"causal": True}, {"window_left": 50}, {"logits_soft_cap": 20.0}):
        check(step, **options)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_batches(data):
    batch = data.draw(st.integers(1, 10))
    kv_heads, group = data.draw(st.sampled_from([1, 2, 3, 8])), data.draw(st.integers(1, 9))
    step = Step(
        [data.draw(st.sampled_from([0, 1, 1, 2, 4, 7, 16, 32, 64, 129, 500])) for _ in range(batch)],
        [data.draw(st.sampled_from([0, 1, 100, 128, 640, 3000])) + data.draw(st.integers(0, 3)) for _ in range(batch)],
        heads=(kv_heads * group, kv_heads),
        dim=data.draw(st.sampled_from([64, 128])),
        page_size=data.draw(st.sampled_from([16, 32, 64, 128])),
        dtype=E4M3,
        seed=data.draw(st.integers(0, 1000)),
    )
    check(step, **data.draw(options_of_plans([-1, -1, 200])))


@pytest.mark.parametrize("dtype_o", [torch.float16, torch.bfloat16, torch.float32])
def test_outputs_of_other_types(dtype_o):
    step = Step([300, 1], [700, 9000], dim=128, dtype=E4M3)
    got = step.run("hopper", causal=True, dtype_o=dtype_o)
    assert got[0].dtype == dtype_o
    assert relative_error(got[0], step.reference(causal=True)[0]) <= OFF


def test_each_value_meets_its_weight():
    """One key of each row counts: the product is that key's value, as it is."""
    keys = 256
    q, k = torch.zeros(keys, 1, 128, device="cuda"), torch.zeros(keys, 1, 128, device="cuda")
    bits = (torch.arange(keys, device="cuda")[:, None] >> torch.arange(8, device="cuda") & 1) * 2.0 - 1
    q[:, 0, :8], k[:, 0, :8] = 16 * bits, 16 * bits  # 2048 for the same number, at most 1536 for others
    v = torch.randn(keys, 1, 128, device="cuda").to(E4M3)
    ragged = BatchPrefillWithRaggedKVCacheWrapper(backend="hopper")
    indptr = torch.tensor([0, keys], dtype=torch.int32, device="cuda")
    ragged.plan(indptr, indptr, 1, 1, 128, causal=False, q_data_type=E4M3, kv_data_type=E4M3, sm_scale=1.0)
    assert torch.equal(ragged.run(q.to(E4M3), k.to(E4M3), v).float(), v.float())


def test_logits_that_differ_from_tile_to_tile():
    step = Step([300, 40], [1500, 900], dim=128, dtype=E4M3, heads=(4, 2))
    for x in (step.q, step.cache[0]):
        x[..., 0] = torch.tensor(16.0).to(E4M3)
    rows = torch.arange(step.cache[0].shape[0], device="cuda") % 29 - 14
    step.cache[0][..., 1] = rows[:, None, None].float().to(E4M3)
    step.q[..., 1] = torch.tensor(12.0).to(E4M3)
    step.poison()
    check(step, causal=True)


def test_ragged_rows():
    indptr = torch.tensor([0, 90, 180, 600], dtype=torch.int32, device="cuda")
    q, k, v = (torch.randn(600, h, 128, device="cuda").to(E4M3) for h in (8, 4, 4))
    out = []
    for backend, dtype, values in (
        ("hopper", E4M3, v),
        ("reference", torch.float64, v),
        ("reference", torch.float64, v.float().abs()),
    ):
        ragged = BatchPrefillWithRaggedKVCacheWrapper(backend=backend)
        ragged.plan(indptr, indptr, 8, 4, 128, causal=True, q_data_type=dtype, kv_data_type=dtype)
        out.append(ragged.run_return_lse(q.to(dtype), k.to(dtype), values.to(dtype)))
    close(*out, 420, v.float().abs().max())


def test_refuses_with_its_reasons():
    with pytest.raises(UnsupportedError, match="multiple of 8 entries"):
        Step([100], [100], dim=128, page_size=1, dtype=E4M3).run("hopper")
    with pytest.raises(UnsupportedError, match="takes heads"):
        Step([100], [100], dim=256, dtype=E4M3).run("hopper")
