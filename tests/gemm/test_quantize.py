"""Quantisers to the bit, against numpy arithmetic and a search among all fp8 values."""

import numpy as np
import pytest
import torch
from gemm_oracle import E4M3, E5M2, quantize_block, round_to_fp8
from hypothesis import given, settings
from hypothesis import strategies as st

from warploom.core.errors import ArgumentError
from warploom.core.testing import cases, poison_like, random_normal, random_strided
from warploom.gemm import per_block_quant_fp8, per_tensor_quant_fp8, per_token_group_quant_fp8

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
INF, NAN = float("inf"), float("nan")


def same(q, scale, codes, expected_scale):
    assert np.array_equal(q.view(torch.uint8).numpy(), codes)
    assert np.array_equal(scale, expected_scale, equal_nan=True)


def check_blocks(x, q, scale, block, eps=1e-10, power_of_two=False):
    """Every block of a matrix."""
    rows, columns = block
    assert tuple(scale.shape) == (-(-x.shape[0] // rows), -(-x.shape[1] // columns))
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            at = slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns)
            same(q[at], np.float32(scale[i, j].item()), *quantize_block(x[at], q.dtype, eps, power_of_two))


@pytest.mark.parametrize(
    *cases(
        shape=[(0, 128), (1, 128), (5, 300), (3, 0)],
        group=[128, 32, 7],
        dtype=FLOATS,
        out=[E4M3, E5M2],
        ue8m0=[False, True],
    )
)
def test_token_groups(case):
    x = random_normal(case.shape, case.dtype, seed=1, scale=3.0)
    q, scale = per_token_group_quant_fp8(x, case.group, dtype=case.out, scale_ue8m0=case.ue8m0)
    assert q.dtype == case.out
    check_blocks(x, q, scale, (1, case.group), power_of_two=case.ue8m0)


@pytest.mark.parametrize(
    *cases(
        shape=[(0, 128), (1, 1), (130, 200), (128, 256)],
        block=[(128, 128), (32, 64)],
        dtype=FLOATS,
        ue8m0=[False, True],
    )
)
def test_blocks(case):
    x = random_normal(case.shape, case.dtype, seed=1, scale=0.02)
    q, scale = per_block_quant_fp8(x, case.block, scale_ue8m0=case.ue8m0)
    check_blocks(x, q, scale, case.block, power_of_two=case.ue8m0)


# Values whose quotients are ties, subnormal, or at the ends of the range.
numbers = st.one_of(
    st.sampled_from(
        [0.0, -0.0, 1.0, 448.0, -448.0, 57344.0, 1e-10, 1e-12, 3e-39, 1.5e-45, 3.3e38, -3.3e38, INF, -INF, NAN]
    ),
    st.floats(width=32),
    st.integers(0, 2**11).map(lambda i: i / 8),
)


@settings(max_examples=150)
@given(st.lists(numbers, min_size=1, max_size=24), st.integers(1, 8), st.sampled_from([E4M3, E5M2]), st.booleans())
def test_awkward_values(values, group, dtype, ue8m0):
    x = torch.tensor([values], dtype=torch.float32)
    q, scale = per_token_group_quant_fp8(x, group, dtype=dtype, scale_ue8m0=ue8m0)
    check_blocks(x, q, scale, (1, group), power_of_two=ue8m0)


def test_group_of_zeros_has_the_scale_of_eps():
    q, scale = per_token_group_quant_fp8(torch.zeros(2, 256).bfloat16(), eps=1e-4)
    assert (q.float() == 0).all()
    assert (scale == np.float32(np.float32(1e-4) / np.float32(448))).all()


def test_nan_and_infinity_are_not_hidden():
    x = torch.ones(4, 16)
    x[1, 3], x[2, 5], x[3, 0] = NAN, -INF, 3.4e38
    q, scale = per_token_group_quant_fp8(x, 16)
    assert q[1].isnan().all()
    assert scale[1].isnan()
    assert q[2].isnan().tolist() == [i == 5 for i in range(16)]
    assert (q[2].float()[:5] == 0).all()
    assert scale[2].isinf()
    dequantised = q.float() * scale
    assert dequantised[2].isnan().all()
    assert dequantised[[0, 3]].isfinite().all()
    assert (q.view(torch.uint8)[1] == 0x7F).all()


def test_values_are_kept_to_the_precision_of_the_type():
    x = torch.randn(64, 1024).bfloat16()
    for quantise, group in ((per_token_group_quant_fp8, (1, 128)), (per_block_quant_fp8, (128, 128))):
        q, scale = quantise(x)
        expanded = scale.repeat_interleave(group[0], 0)[:64].repeat_interleave(group[1], 1)
        error = (q.float() * expanded - x.float()).abs()
        # Half a step: 2^-4 of the value, or half the smallest step of the block.
        assert (error <= x.float().abs() * 2**-4 + expanded * 2**-10).all()


@pytest.mark.parametrize(*cases(rows=[1, 4, 6], aligned=[False, True], lead=[(), (2,), (2, 3)]))
def test_column_major_scales(case):
    x = random_normal((*case.lead, case.rows, 256), torch.bfloat16, seed=1)
    q, scale = per_token_group_quant_fp8(x, column_major_scales=True, scale_tma_aligned=case.aligned)
    q_row_major, row_major = per_token_group_quant_fp8(x)
    padded = -(-case.rows // 4) * 4 if case.aligned else case.rows
    assert scale.shape == (*case.lead, case.rows, 2)
    assert scale.stride()[-2:] == (1, padded)
    assert torch.equal(scale, row_major)
    assert torch.equal(q.view(torch.uint8), q_row_major.view(torch.uint8))


def test_column_major_scales_of_blocks():
    x = random_normal((2, 300, 384), torch.bfloat16)
    q, scale = per_block_quant_fp8(x, column_major_scales=True)
    assert scale.shape == (2, 3, 3)
    assert scale.stride() == (9, 1, 3)
    for i in range(2):
        check_blocks(x[i], q[i], scale[i], (128, 128))


def test_strided_inputs_and_own_outputs():
    x = random_strided((3, 40, 160), torch.float16, seed=1, padding=1, last_contiguous=False)
    out = poison_like(torch.empty(3, 40, 160, dtype=E4M3))
    out_scale = poison_like(torch.empty(3, 2, 80))[:, :, ::2].mT
    q, scale = per_token_group_quant_fp8(x, out=out, out_scale=out_scale)
    assert q is out
    assert scale is out_scale
    for i in range(3):
        check_blocks(x[i], q[i], scale[i], (1, 128))


def test_one_dimension_is_one_token():
    q, scale = per_token_group_quant_fp8(torch.arange(8.0), 4, column_major_scales=True)
    check_blocks(torch.arange(8.0)[None], q[None], scale[None], (1, 4))


@pytest.mark.parametrize(*cases(shape=[(0,), (1,), (3, 50), (2, 3, 4)], dtype=FLOATS, out=[E4M3, E5M2]))
def test_tensor(case):
    x = random_normal(case.shape, case.dtype, seed=1, scale=50.0)
    q, scale = per_tensor_quant_fp8(x, dtype=case.out)
    same(q, np.float32(scale.item()), *quantize_block(x, case.out, 1e-10))


def test_tensor_with_a_given_scale_saturates():
    x = torch.tensor([[0.0, 1.0, -3.0, 1e6, -INF, INF, NAN, 1e-9]])
    scale = torch.tensor(0.5)
    q, returned = per_tensor_quant_fp8(x, scale)
    assert returned.data_ptr() == scale.data_ptr()
    assert np.array_equal(q.view(torch.uint8).numpy(), round_to_fp8(x.numpy() * np.float32(2), E4M3))
    assert q.float()[0, 3:6].tolist() == [448.0, -448.0, 448.0]


@pytest.mark.parametrize("mark", [NAN, INF])
def test_tensor_with_nan_or_infinity(mark):
    x = torch.ones(3, 16)
    x[1, 1] = mark
    q, scale = per_tensor_quant_fp8(x)
    assert (q.float() * scale).isnan().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.zeros(2, 8, dtype=torch.float64)}, "`x` must be of dtype bfloat16 or float16 or float32"),
        ({"x": torch.tensor(1.0)}, "`x` must be a tensor"),
        ({"group_size": 0}, "`group_size` must be a positive integer"),
        ({"eps": 0.0}, "`eps` must be at least 1e-30"),
        ({"eps": NAN}, "`eps` must be at least 1e-30"),
        ({"dtype": torch.int8}, "`dtype` must be float8_e4m3fn or float8_e5m2"),
        ({"out": torch.zeros(2, 8)}, "`out` must be of dtype float8_e4m3fn"),
        ({"out": torch.zeros(8, 2).to(E4M3).t()}, "`out` must be contiguous"),
        ({"out_scale": torch.zeros(2, 2)}, r"`out_scale` must be of shape \(2, 1\)"),
        ({"backend": "cuda"}, "needs tensors on an NVIDIA GPU"),
    ],
)
def test_wrong_arguments(arguments, message):
    error = NotImplementedError if "backend" in arguments else ArgumentError
    with pytest.raises(error, match=message):
        per_token_group_quant_fp8(**{"x": torch.zeros(2, 8), **arguments})


def test_wrong_block_size_and_scale():
    with pytest.raises(ArgumentError, match="`block_size` must be two positive integers"):
        per_block_quant_fp8(torch.zeros(2, 2), (128, 0))
    with pytest.raises(ArgumentError, match="`scale` must be one float32"):
        per_tensor_quant_fp8(torch.zeros(2), torch.ones(2))
    with pytest.raises(ArgumentError, match="`out_scale` must be None"):
        per_tensor_quant_fp8(torch.zeros(2), torch.ones(1), out_scale=torch.ones(1))
