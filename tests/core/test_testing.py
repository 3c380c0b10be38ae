"""The comparison must reject what is wrong and accept what rounding explains, for every dtype."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from warploom.core.testing import (
    assert_close,
    cases,
    disassemble,
    indptr_of,
    poison_like,
    ragged_lengths,
    random_normal,
    random_strided,
    relative_error,
    resources_of,
    tolerance_of,
    why_no_disassembler,
)

NAN, INF = math.nan, math.inf
FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize(*cases(dtype=FLOATS))
def test_rounding_to_the_output_dtype_is_accepted(case):
    exact = random_normal((32, 64), torch.float64, seed=3)
    assert_close(exact.to(case.dtype), exact)


@pytest.mark.parametrize(*cases(dtype=FLOATS))
def test_an_error_of_several_roundings_is_rejected(case):
    expected = torch.ones(4, 8, dtype=torch.float64)
    wrong = expected.clone()
    wrong[1, 3] += 4 * tolerance_of(case.dtype).rtol
    with pytest.raises(AssertionError, match=r"worst at \[1, 3\]"):
        assert_close(wrong, expected, dtype=case.dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_matmul_with_rounded_factors_is_accepted(dtype):
    a, b = random_normal((16, 4096), dtype, seed=1), random_normal((4096, 32), dtype, seed=2)
    assert_close((a.float() @ b.float()).to(dtype), a.double() @ b.double())


def test_float32_sums_in_another_order_are_accepted():
    x = random_normal((8, 65536), seed=5)
    reordered = x.reshape(8, 256, 256).sum(1).sum(1)
    assert_close(reordered, x.double().sum(1), what="sum")


def test_small_rows_are_judged_by_their_own_magnitude():
    expected = torch.stack([torch.full((16,), 1e3), torch.full((16,), 1e-3)])
    with pytest.raises(AssertionError, match=r"worst at \[1, 0\]"):
        assert_close(expected + torch.tensor([[0.0], [1e-4]]), expected)


@pytest.mark.parametrize(
    ("got", "want", "kind"),
    [
        ([NAN, 1.0], [0.0, 1.0], "NaN"),
        ([0.0, 1.0], [NAN, 1.0], "NaN"),
        ([INF], [-INF], r"\+inf"),
        ([0.0], [-INF], "-inf"),
    ],
)
def test_specials_must_stand_at_the_same_places(got, want, kind):
    with pytest.raises(AssertionError, match=f"lse: {kind} at different places"):
        assert_close(torch.tensor(got), torch.tensor(want), what="lse")


def test_equal_specials_are_accepted():
    x = torch.tensor([[NAN, INF, -INF, 1.0]])
    assert_close(x, x.double())
    assert relative_error(x, x) == 0.0


def test_finite_values_beside_infinities_are_still_compared():
    with pytest.raises(AssertionError, match=r"worst at \[1\]"):
        assert_close(torch.tensor([INF, 2.0]), torch.tensor([INF, 1.0]))


def test_integers_and_booleans_must_be_equal():
    assert_close(torch.tensor([1, 2**31]), torch.tensor([1, 2**31]))
    with pytest.raises(AssertionError, match="1 of 2 elements"):
        assert_close(torch.tensor([1, 3]), torch.tensor([1, 2]))
    with pytest.raises(AssertionError):
        assert_close(torch.tensor([True]), torch.tensor([False]))


def test_shapes_are_compared_and_empty_is_equal():
    with pytest.raises(AssertionError, match=r"out: shapes differ: got \(2,\), expected \(2, 1\)"):
        assert_close(torch.zeros(2), torch.zeros(2, 1), what="out")
    assert_close(torch.zeros(0, 3), torch.zeros(0, 3))


def test_message_shows_index_values_and_error():
    with pytest.raises(AssertionError, match=r"got 3, expected 2, error 1 \(relative 0\.5, allowed"):
        assert_close(torch.tensor(3.0), torch.tensor(2.0))


def test_given_tolerances_replace_the_derived_ones():
    assert_close(torch.tensor([1.5]), torch.tensor([1.0]), rtol=0.6)
    assert_close(torch.tensor([1.5]), torch.tensor([1.0]), rtol=0.0, atol=0.5)
    with pytest.raises(AssertionError):
        assert_close(torch.tensor([1.5]), torch.tensor([1.0]), rtol=0.0, atol=0.4)


def test_relative_error_is_a_norm_ratio():
    assert relative_error(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.0])) == pytest.approx(1 / math.sqrt(18))
    assert relative_error(torch.zeros(3), torch.zeros(3)) == 0.0
    assert relative_error(torch.ones(3), torch.zeros(3)) == INF
    assert relative_error(torch.tensor([NAN]), torch.tensor([1.0])) == INF
    assert relative_error(torch.tensor([1.0]), torch.tensor([INF])) == INF
    assert relative_error(torch.zeros(2), torch.zeros(3)) == INF


@settings(max_examples=100, deadline=None)
@given(
    batch=st.integers(0, 40),
    max_len=st.integers(0, 5000),
    seed=st.integers(0, 2**31),
    empty=st.sampled_from([0, 0.2, 1]),
)
def test_ragged_lengths_are_in_range_repeatable_and_contain_the_edges(batch, max_len, seed, empty):
    lengths = ragged_lengths(batch, max_len, seed, empty=empty)
    assert lengths.shape == (batch,)
    assert lengths.dtype == torch.int32
    assert torch.equal(lengths, ragged_lengths(batch, max_len, seed, empty=empty))
    found = lengths.tolist()
    assert all(0 <= n <= max_len for n in found)
    if batch >= 2:
        assert max_len in found
    if batch >= 4 and empty:
        assert 0 in found
    if batch >= 3 and not empty and max_len:
        assert 0 not in found
        assert 1 in found
    indptr = indptr_of(lengths)
    assert indptr[0] == 0
    assert torch.equal(indptr.diff(), lengths)


def test_ragged_lengths_refuses_negative_sizes():
    with pytest.raises(ValueError, match="must not be negative"):
        ragged_lengths(-1, 4)


def test_cases_is_the_filtered_product_with_readable_ids():
    name, params = cases(lambda c: c.batch > 1, batch=[1, 3], causal=[True, False], layout=["NHD"])
    assert name == "case"
    assert [p.id for p in params] == ["batch3-causal-layout_NHD", "batch3-no_causal-layout_NHD"]
    assert [(p.values[0].batch, p.values[0].causal) for p in params] == [(3, True), (3, False)]


@pytest.mark.parametrize(*cases(batch=[1, 3], shape=[(2, 3)]))
def test_cases_feed_parametrize(case, request):
    assert request.node.callspec.id == f"batch{case.batch}-shape_2x3"


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int32, torch.int64, torch.int8, torch.uint8, torch.bool])
def test_poison_covers_every_dtype_and_keeps_strides(dtype):
    like = torch.zeros(3, 5, dtype=torch.float32).to(dtype).t()
    poison = poison_like(like)
    assert (poison.shape, poison.stride(), poison.dtype) == (like.shape, like.stride(), like.dtype)
    values = poison.to(torch.float64)
    expected = {torch.int32: -1, torch.int64: -1, torch.int8: -1, torch.uint8: 255, torch.bool: 1}.get(dtype, NAN)
    assert torch.equal(torch.isnan(values), torch.full_like(values, expected).isnan())
    if not math.isnan(expected):
        assert torch.all(values == expected)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float8_e4m3fn]),
    last_contiguous=st.booleans(),
    padding=st.sampled_from([1, 8]),
)
def test_random_strided_holds_the_normal_values_between_poison(shape, dtype, last_contiguous, padding):
    x = random_strided(shape, dtype, seed=2, last_contiguous=last_contiguous, padding=padding)
    assert torch.equal(x.double(), random_normal(shape, dtype, seed=2).double())
    assert x.stride(-1) == (1 if last_contiguous else 2)
    storage = torch.empty(0, dtype=dtype).set_(x.untyped_storage())
    assert int((~storage.double().isnan()).sum()) == x.numel()


def test_random_normal_fits_the_range_of_small_types():
    assert torch.isfinite(random_normal((1000,), torch.float8_e4m3fn, scale=1e4).float()).all()
    assert math.isclose(float(random_normal((4096,), seed=1).std()), 1.0, rel_tol=0.05)


LOG = """
ptxas info    : Compiling entry function 'f' for 'sm_90a'
ptxas         .     16 bytes stack frame, 0 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers
    0 bytes stack frame, 8 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 168 registers
"""


def test_resources_are_the_largest_of_the_log():
    used = resources_of(LOG)
    assert (used.registers, used.stack, used.spill_stores, used.spill_loads) == (168, 16, 8, 4)
    with pytest.raises(ValueError, match="not a log of ptxas"):
        resources_of("nothing")


@pytest.mark.skipif(bool(why_no_disassembler()), reason=why_no_disassembler())
def test_the_disassembler_refuses_what_is_no_cubin():
    with pytest.raises(RuntimeError, match="nvdisasm: "):
        disassemble(b"not a cubin")


def test_a_missing_disassembler_says_what_to_install(monkeypatch):
    monkeypatch.setattr("warploom.core.testing.machine_code._nvdisasm", lambda: None)
    with pytest.raises(RuntimeError, match="pip install nvidia-cuda-nvdisasm"):
        disassemble(b"")
