"""Block-scaled products against float64."""

import pytest
import torch
from gemm_oracle import E4M3, E5M2, block_scaled, random_fp8, random_scales
from hypothesis import given, settings
from hypothesis import strategies as st

from warploom.core.errors import ArgumentError
from warploom.core.testing import assert_close, cases, random_strided
from warploom.gemm import (
    fp8_blockscale_gemm_sm90,
    gemm_fp8_nt_blockscaled,
    gemm_fp8_nt_groupwise,
    per_block_quant_fp8,
    per_token_group_quant_fp8,
)

RECIPES = ((1, 128, 128), (1, 1, 128), (128, 128, 128), (1, 16, 32), (3, 5, 7))


def problem(m, n, k, granularity, seed=0, adversarial=False, dtype=E4M3):
    """Operands and scales in their logical shapes."""
    gm, gn, gk = granularity
    blocks = -(-k // gk)
    a, b = random_fp8((m, k), seed=seed), random_fp8((n, k), dtype, seed=seed + 1)
    a_scale = random_scales((-(-m // gm), blocks), seed + 2, adversarial)
    b_scale = random_scales((-(-n // gn), blocks), seed + 3)
    return a, b, a_scale, b_scale


@pytest.mark.parametrize(
    *cases(m=[0, 1, 130], n=[8, 144], k=[0, 128, 200], granularity=RECIPES, mode=[None, "K", "MN"])
)
def test_granularities_and_scale_layouts(case):
    a, b, a_scale, b_scale = problem(case.m, case.n, case.k, case.granularity)
    stored = (a_scale.T.contiguous(), b_scale.T.contiguous()) if case.mode == "MN" else (a_scale, b_scale)
    out = gemm_fp8_nt_groupwise(a, b, *stored, case.mode, case.granularity, out_dtype=torch.float32)
    assert_close(out, block_scaled(a, b, a_scale, b_scale, case.granularity))


@settings(max_examples=30)
@given(
    st.integers(0, 70),
    st.integers(0, 70),
    st.integers(0, 400),
    st.tuples(st.integers(1, 130), st.integers(1, 130), st.integers(1, 130)),
    st.integers(0, 999),
)
def test_any_shape_granularity_and_scales(m, n, k, granularity, seed):
    a, b, a_scale, b_scale = problem(m, n, k, granularity, seed, adversarial=True, dtype=E5M2)
    out = gemm_fp8_nt_groupwise(a, b, a_scale, b_scale, None, granularity, out_dtype=torch.float32)
    expected = block_scaled(a, b, a_scale, b_scale, granularity)
    # Row by row: the scales of neighbouring rows may differ by 70 orders of magnitude.
    assert_close(out, expected.float())


def test_strided_operands_and_scales():
    a, b = random_strided((6, 256), E4M3, seed=1), random_strided((136, 256), E4M3, seed=2, padding=3)
    a_scale, b_scale = random_scales((2, 6)).T, random_scales((2, 4))[:, ::2]
    out = gemm_fp8_nt_groupwise(a, b, a_scale, b_scale)
    assert_close(out, block_scaled(a, b, a_scale, b_scale, (1, 128, 128)))


def test_large_scales_whose_product_is_moderate():
    """Dequantising first would overflow: 448 * 1e36 is beyond float32."""
    a, b, _, _ = problem(3, 8, 256, (1, 128, 128))
    a_scale, b_scale = torch.full((3, 2), 1e37), torch.full((1, 2), 1e-37)
    out = gemm_fp8_nt_groupwise(a, b, a_scale, b_scale)
    assert_close(out, block_scaled(a, b, a_scale, b_scale, (1, 128, 128)))


def test_nan_scale_and_nan_code_stay_in_their_rows():
    a, b, a_scale, b_scale = problem(4, 8, 256, (1, 128, 128))
    a.view(torch.uint8)[1, 200] = 0x7F
    a_scale[2, 1] = float("nan")
    out = gemm_fp8_nt_groupwise(a, b, a_scale, b_scale)
    assert out[[0, 3]].isfinite().all()
    assert out[[1, 2]].isnan().all()


@pytest.mark.parametrize("mode", [None, "K", "MN"])
def test_blockscaled(mode):
    a, b, a_scale, b_scale = problem(200, 136, 256, (128, 128, 128))
    stored = (a_scale.T, b_scale.T) if mode == "MN" else (a_scale, b_scale)
    out = gemm_fp8_nt_blockscaled(a, b, *stored, mode)
    assert_close(out, block_scaled(a, b, a_scale, b_scale, (128, 128, 128)))


@pytest.mark.parametrize("quantised", ["neither", "weight by blocks", "weight by rows", "both"])
def test_blockscale_gemm_quantises_what_is_not(quantised):
    x, weight = torch.randn(5, 256).bfloat16(), torch.randn(144, 256).bfloat16()
    a, a_scale = per_token_group_quant_fp8(x)
    if quantised == "weight by rows":
        b, b_scale = per_token_group_quant_fp8(weight)
    else:
        b, b_scale = per_block_quant_fp8(weight)
    arguments = {
        "neither": (x, weight),
        "weight by blocks": (x, b, None, b_scale),
        "weight by rows": (x, b, None, b_scale),
        "both": (a, b, a_scale, b_scale),
    }[quantised]
    out = fp8_blockscale_gemm_sm90(*arguments)
    granularity = (1, 1 if quantised == "weight by rows" else 128, 128)
    assert_close(out, block_scaled(a, b, a_scale, b_scale, granularity))
    # The quantisation itself: 4 significant bits on both sides, errors of random sign over 256 terms.
    error = (out.double() - x.double() @ weight.double().T).norm() / (x.double() @ weight.double().T).norm()
    assert error < 0.06


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale_major_mode": "N"}, "`scale_major_mode` must be 'MN', 'K' or None"),
        ({"scale_granularity_mnk": (1, 128)}, "`scale_granularity_mnk` must be three positive integers"),
        ({"scale_granularity_mnk": (1, 0, 128)}, "`scale_granularity_mnk` must be three positive integers"),
        ({"a_scale": torch.ones(2, 3)}, r"`a_scale` must be of shape \(3, 2\)"),
        ({"b_scale": torch.ones(2, 1)}, r"`b_scale` must be of shape \(1, 2\), got shape \(2, 1\)"),
        ({"scale_major_mode": "MN"}, r"`a_scale` must be of shape \(2, 3\)"),
        ({"b": random_fp8((8, 128))}, "`b` must be of k = 256"),
    ],
)
def test_wrong_arguments(arguments, message):
    a, b, a_scale, b_scale = problem(3, 8, 256, (1, 128, 128))
    with pytest.raises(ArgumentError, match=message):
        gemm_fp8_nt_groupwise(**{"a": a, "b": b, "a_scale": a_scale, "b_scale": b_scale, **arguments})


def test_blockscale_gemm_wants_scales_of_fp8_operands_alone():
    x, a = torch.zeros(2, 128).bfloat16(), torch.zeros(2, 128).to(E4M3)
    with pytest.raises(ArgumentError, match="`weight_scale` must be given for an fp8 operand"):
        fp8_blockscale_gemm_sm90(x, a)
    with pytest.raises(ArgumentError, match="`input_scale` must be None for a bfloat16 `input`"):
        fp8_blockscale_gemm_sm90(x, x, torch.ones(2, 1))
