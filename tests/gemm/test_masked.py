"""Masked products against one float64 product for each group."""

import pytest
import torch
from gemm_oracle import elementwise, random_fp8, random_scales
from hypothesis import given, settings
from hypothesis import strategies as st

from warploom.core.errors import ArgumentError
from warploom.core.settings import settings as warploom_settings
from warploom.core.testing import assert_close
from warploom.gemm import batch_gemm_fp8_nt_groupwise_masked, per_token_group_quant_fp8


@settings(max_examples=30)
@given(
    st.lists(st.integers(0, 9), max_size=6),
    st.integers(1, 20),
    st.sampled_from([0, 64, 128, 300]),
    st.sampled_from([(1, 128, 128), (4, 8, 32), (1, 1, 128)]),
    st.sampled_from([None, "K", "MN"]),
    st.integers(0, 999),
)
def test_rows_below_the_mask(masked, n, k, granularity, mode, seed):
    gm, gn, gk = granularity
    groups, max_m, blocks = len(masked), 9, -(-k // gk)
    a, b = random_fp8((groups, max_m, k), seed=seed), random_fp8((groups, n, k), seed=seed + 1)
    a_scale = random_scales((groups, -(-max_m // gm), blocks), seed + 2, adversarial=True)
    b_scale = random_scales((groups, -(-n // gn), blocks), seed + 3)
    stored = (a_scale.mT, b_scale.mT) if mode == "MN" else (a_scale, b_scale)
    out = batch_gemm_fp8_nt_groupwise_masked(
        a,
        b,
        *stored,
        torch.tensor(masked, dtype=torch.int32),
        4,
        granularity,
        None,
        torch.float32,
        scale_major_mode=mode,
    )
    for group, rows in enumerate(masked):
        left = a[group].double() * elementwise(a_scale[group], (max_m, k), (gm, gk))
        right = b[group].double() * elementwise(b_scale[group], (n, k), (gn, gk))
        assert_close(out[group, :rows], (left @ right.T)[:rows])


def test_takes_the_column_major_scales_of_the_quantiser():
    x, b = torch.randn(2, 5, 256).bfloat16(), random_fp8((2, 16, 256))
    a, a_scale = per_token_group_quant_fp8(x, column_major_scales=True, scale_tma_aligned=True)
    assert a_scale.stride() == (16, 1, 8)
    b_scale = random_scales((2, 1, 2))
    out = batch_gemm_fp8_nt_groupwise_masked(a, b, a_scale, b_scale, torch.tensor([5, 2]), 4)
    left = a[1].double() * elementwise(a_scale[1], (5, 256), (1, 128))
    right = b[1].double() * elementwise(b_scale[1], (16, 256), (128, 128))
    assert_close(out[1, :2], (left @ right.T)[:2])


def call(**arguments):
    a = random_fp8((2, 4, 128))
    scales = {"a_scale": torch.ones(2, 4, 1), "b_scale": torch.ones(2, 1, 1)}
    return batch_gemm_fp8_nt_groupwise_masked(
        **{"a": a, "b": a, **scales, "masked_m": torch.tensor([1, 4]), "expected_m": 2, **arguments}
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"masked_m": torch.tensor([1])}, "`masked_m` must be of groups = 2"),
        ({"masked_m": torch.ones(2)}, "`masked_m` must be of dtype int32 or int64"),
        ({"expected_m": -1}, "`expected_m` must be at least 0"),
        ({"a_scale": torch.ones(2, 1, 4)}, r"`a_scale` must be of shape \(2, 4, 1\)"),
        ({"b": random_fp8((3, 4, 128))}, "`b` must be of groups = 2"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        call(**arguments)


@pytest.mark.parametrize("masked", [[1, 5], [-1, 0]], ids=str)
def test_debug_checks_find_wrong_masks(masked):
    with (
        warploom_settings.override(debug_checks=True),
        pytest.raises(ArgumentError, match="`masked_m` must be at least 0 and below 5"),
    ):
        call(masked_m=torch.tensor(masked))
