"""Grouped products against one float64 product for each group."""

import pytest
import torch
from gemm_oracle import E4M3, random_fp8, random_scales
from hypothesis import given, settings
from hypothesis import strategies as st

from warploom.core.errors import ArgumentError
from warploom.core.settings import settings as warploom_settings
from warploom.core.testing import (
    assert_close,
    cases,
    indptr_of,
    poison_like,
    ragged_lengths,
    random_normal,
    random_strided,
)
from warploom.gemm import grouped_mm_bf16, grouped_mm_fp8

SIZES = ([], [0], [5], [0, 3, 0, 1, 0], [4, 0, 9])


def expected_rows(a, b, lengths):
    """float64 products of the rows of every group, one after the other."""
    parts, start = [a.new_zeros((0, b.shape[1]), dtype=torch.float64)], 0
    for group, length in enumerate(lengths):
        parts.append(a[start : start + length].double() @ b[group].double().T)
        start += length
    return torch.cat(parts)


@pytest.mark.parametrize(
    *cases(
        sizes=SIZES,
        spare=[0, 3],
        dtype=[torch.bfloat16, torch.float16],
        out_dtype=[None, torch.float32],
        own=[False, True],
    )
)
def test_bf16(case):
    rows = sum(case.sizes)
    a = random_normal((rows + case.spare, 24), case.dtype, seed=1)
    b = random_normal((len(case.sizes), 16, 24), case.dtype, seed=2)
    out = poison_like(torch.empty(rows + case.spare, 16, dtype=case.out_dtype or case.dtype)) if case.own else None
    got = grouped_mm_bf16(a, b, indptr_of(case.sizes), out, case.out_dtype)
    assert got.dtype == (case.out_dtype or case.dtype)
    assert out is None or got is out
    assert_close(got[:rows], expected_rows(a, b, case.sizes))


@settings(max_examples=25)
@given(st.integers(1, 20), st.integers(0, 60), st.integers(1, 40), st.integers(0, 80), st.integers(0, 999))
def test_any_groups_and_strides(groups, longest, n, k, seed):
    lengths = ragged_lengths(groups, longest, seed)
    a = random_strided((int(lengths.sum()), k), torch.bfloat16, seed=seed, padding=2)
    b = random_normal((groups, k, n), torch.bfloat16, seed=seed + 1).mT
    out = grouped_mm_bf16(a, b, indptr_of(lengths).long())
    assert_close(out, expected_rows(a, b, lengths.tolist()))


@pytest.mark.parametrize(
    *cases(
        sizes=SIZES, a_scale=[None, "tensor", "rows"], b_scale=[None, "tensor", "groups", "rows"], alpha=[False, True]
    )
)
def test_fp8(case):
    groups, rows, n = len(case.sizes), sum(case.sizes), 16
    a, b = random_fp8((rows, 32)), random_fp8((groups, n, 32), seed=1)
    a_shape = {"tensor": (1,), "rows": (rows, 1)}.get(case.a_scale)
    b_shape = {"tensor": (1,), "groups": (groups,), "rows": (groups, n)}.get(case.b_scale)
    a_scale = random_scales(a_shape, seed=2) if a_shape else None
    b_scale = random_scales(b_shape, seed=3) if b_shape else None
    alpha = torch.tensor([0.5]) if case.alpha else None
    out = grouped_mm_fp8(a, b, indptr_of(case.sizes), alpha, a_scale=a_scale, b_scale=b_scale)
    left = a.double() * (1.0 if a_scale is None else a_scale.double().view(-1, 1))
    by_row = torch.ones(1, 1, 1) if b_scale is None else b_scale.view(*b_scale.shape, *(1,) * (3 - b_scale.dim()))
    right = b.double() * by_row.double()
    assert out.dtype == torch.bfloat16
    assert_close(out, expected_rows(left, right, case.sizes) * (0.5 if case.alpha else 1.0))


INDICES = ([3, 0, 3, 6, 6, 1, 2], [0, 0, 0, 0], [5], [])


@pytest.mark.parametrize(*cases(indices=INDICES, dtype=[torch.int32, torch.int64], own=[False, True], step=[1, 2]))
def test_rows_that_indices_name(case):
    a, b = random_normal((7, 24), torch.bfloat16, seed=1), random_normal((3, 16, 24), torch.bfloat16, seed=2)
    rows = len(case.indices)
    lengths = [rows // 2, 0, rows - rows // 2]
    indices = torch.tensor(case.indices, dtype=case.dtype).repeat_interleave(case.step)[:: case.step]
    out = poison_like(torch.empty(rows, 16, dtype=torch.bfloat16)) if case.own else None
    got = grouped_mm_bf16(a, b, indptr_of(lengths), out, row_indices=indices)
    assert got.shape == (rows, 16)
    assert_close(got, expected_rows(a[indices.long()], b, lengths))


@pytest.mark.parametrize("a_scale", [None, (1,), (7,), (7, 1)])
@pytest.mark.parametrize("indices", INDICES)
def test_fp8_rows_that_indices_name(a_scale, indices):
    a, b = random_fp8((7, 32)), random_fp8((2, 16, 32), seed=1)
    scale = None if a_scale is None else random_scales(a_scale, seed=2)
    indices, lengths = torch.tensor(indices, dtype=torch.int32), [len(indices), 0]
    out = grouped_mm_fp8(a, b, indptr_of(lengths), a_scale=scale, row_indices=indices)
    left = a.double() * (1.0 if scale is None else scale.double().view(-1, 1))
    assert_close(out, expected_rows(left[indices.long()], b.double(), lengths))


def test_wrong_indices_take_rows_that_are_there():
    a, b = random_normal((3, 8), torch.bfloat16, seed=1), random_normal((1, 8, 8), torch.bfloat16, seed=2)
    indices = torch.tensor([-5, 9, 1])
    got = grouped_mm_bf16(a, b, indptr_of([3]), row_indices=indices)
    assert_close(got, expected_rows(a[[0, 2, 1]], b, [3]))
    with (
        warploom_settings.override(debug_checks=True),
        pytest.raises(ArgumentError, match="`row_indices` must be at least 0 and below 3 everywhere, got -5"),
    ):
        grouped_mm_bf16(a, b, indptr_of([3]), row_indices=indices)


def test_nan_stays_in_its_group():
    a, b = random_fp8((6, 16)), random_fp8((3, 8, 16))
    scale = torch.tensor([1.0, float("nan"), 1.0])
    out = grouped_mm_fp8(a, b, indptr_of([2, 2, 2]), b_scale=scale)
    assert out[2:4].isnan().all()
    assert out[[0, 1, 4, 5]].isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"m_indptr": torch.tensor([0, 4])}, r"`m_indptr` must be of shape \(3,\), got shape \(2,\)"),
        ({"m_indptr": torch.zeros(3)}, "`m_indptr` must be of dtype int32 or int64"),
        ({"b": torch.zeros(2, 8, 15).bfloat16()}, "`b` must be of k = 16"),
        ({"b": torch.zeros(8, 16).bfloat16()}, r"`b` must be a tensor \[groups, n, k\]"),
        ({"out": torch.zeros(4, 9).bfloat16()}, r"`out` must be of shape \(4, 8\)"),
        ({"out_dtype": torch.int8}, "`out_dtype` must be bfloat16, float16 or float32"),
        ({"row_indices": torch.ones(4)}, "`row_indices` must be of dtype int32 or int64"),
        ({"row_indices": torch.ones(4, 1).int()}, r"`row_indices` must be a tensor \[_\]"),
        (
            {"row_indices": torch.zeros(5).int(), "out": torch.zeros(4, 8).bfloat16()},
            r"`out` must be of shape \(5, 8\)",
        ),
        (
            {"row_indices": torch.zeros(4).int(), "a": torch.zeros(0, 16).bfloat16()},
            "`row_indices` must be empty where `a`",
        ),
    ],
)
def test_wrong_arguments(arguments, message):
    a, b = torch.zeros(4, 16).bfloat16(), torch.zeros(2, 8, 16).bfloat16()
    with pytest.raises(ArgumentError, match=message):
        grouped_mm_bf16(**{"a": a, "b": b, "m_indptr": torch.tensor([0, 1, 4]), **arguments})


@pytest.mark.parametrize("b_scale", [torch.ones(3), torch.ones(8, 2), torch.ones(2, 8, 1)], ids=str)
def test_wrong_scales_of_b(b_scale):
    with pytest.raises(ArgumentError, match=r"`b_scale` must be one float32, or of shape \(2,\) or \(2, 8\)"):
        grouped_mm_fp8(random_fp8((4, 16)), random_fp8((2, 8, 16)), torch.tensor([0, 1, 4]), b_scale=b_scale)


@pytest.mark.parametrize("offsets", [[1, 2, 4], [0, 3, 2], [0, 2, 5]], ids=str)
def test_debug_checks_find_wrong_offsets(offsets):
    a, b = torch.zeros(4, 16).bfloat16(), torch.zeros(2, 8, 16).bfloat16()
    call = grouped_mm_bf16, (a, b, torch.tensor(offsets))
    with (
        warploom_settings.override(debug_checks=True),
        pytest.raises(ArgumentError, match="`m_indptr` must be offsets that start at 0, never fall and end at 4"),
    ):
        call[0](*call[1])


def test_fp8_row_scales_of_one_type_only():
    with pytest.raises(ArgumentError, match="`a_scale` must be of dtype float32"):
        grouped_mm_fp8(
            random_fp8((4, 16)), random_fp8((1, 8, 16)), torch.tensor([0, 4]), a_scale=torch.ones(4).to(E4M3)
        )
