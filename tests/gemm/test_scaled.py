"""`mm_fp8` and `bmm_fp8` against float64."""

import pytest
import torch
from gemm_oracle import E4M3, E5M2, random_fp8, random_scales
from hypothesis import given, settings
from hypothesis import strategies as st

from warploom.core.errors import ArgumentError
from warploom.core.testing import assert_close, cases, random_normal, random_strided
from warploom.gemm import bmm_fp8, mm_fp8


@pytest.mark.parametrize(
    *cases(m=[0, 1, 9], n=[1, 16], k=[0, 20, 64], a_rows=[False, True], b_rows=[False, True], bias=[False, True])
)
def test_scales_of_tensors_and_rows(case):
    a, b = random_fp8((case.m, case.k)), random_fp8((case.n, case.k), E5M2, seed=1).t()
    a_scale = random_scales((case.m,) if case.a_rows else (1,), seed=2)
    b_scale = random_scales((case.n,) if case.b_rows else (1,), seed=3)
    bias = random_normal((case.n,), torch.bfloat16) if case.bias else None
    out = mm_fp8(a, b, a_scale, b_scale, bias)
    expected = (a.double() * a_scale.double().view(-1, 1)) @ (b.double() * b_scale.double().view(1, -1))
    assert out.dtype == torch.bfloat16
    assert_close(out, expected + (bias.double() if case.bias else 0.0))


@settings(max_examples=25)
@given(st.integers(0, 30), st.integers(1, 30), st.integers(0, 200), st.integers(0, 999))
def test_any_shape_and_strides(m, n, k, seed):
    a = random_strided((m, k), E4M3, seed=seed, padding=2)
    b = random_strided((k, n), E4M3, seed=seed + 1, padding=2)
    a_scale, b_scale = random_scales((m, 1), seed, adversarial=True), random_scales((1, n), seed + 1)
    out = mm_fp8(a, b, a_scale, b_scale, out_dtype=torch.float32)
    assert_close(out, (a.double() * a_scale.double()) @ (b.double() * b_scale.double()))


@pytest.mark.parametrize(*cases(batch=[0, 1, 3], m=[1, 5], k=[0, 48], dtype=[torch.bfloat16, torch.float16]))
def test_bmm(case):
    a, b = random_fp8((case.batch, case.m, case.k)), random_fp8((case.batch, 8, case.k), seed=1).mT
    out = bmm_fp8(a, b, torch.tensor(0.25), torch.tensor([2.0]), case.dtype)
    assert out.dtype == case.dtype
    assert_close(out, (a.double() @ b.double()) * 0.5)


def test_nan_codes_and_nan_scales_stay_in_their_rows():
    a, b = random_fp8((4, 32)), random_fp8((32, 8), seed=1)
    a.view(torch.uint8)[1, 7] = 0x7F
    scale = torch.tensor([1.0, 1.0, float("nan"), float("inf")])
    out = mm_fp8(a, b, scale, torch.ones(1))
    assert out[0].isfinite().all()
    assert out[1].isnan().all()
    assert out[2].isnan().all()
    assert out[3].isinf().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"a": torch.zeros(2, 16)}, "`a` must be of dtype float8_e4m3fn or float8_e5m2"),
        ({"a_scale": torch.ones(3)}, "`a_scale` must be one float32, or one for each of the 2 rows"),
        ({"a_scale": torch.ones(2, 2)}, "`a_scale` must be one float32"),
        ({"a_scale": torch.ones(2).double()}, "`a_scale` must be of dtype float32"),
        ({"b_scale": torch.ones(2)}, "`b_scale` must be one float32, or one for each of the 4 rows"),
        ({"out_dtype": torch.float8_e5m2}, "`out_dtype` must be bfloat16, float16, float32 or float8_e4m3fn"),
    ],
)
def test_wrong_arguments(arguments, message):
    call = {"a": random_fp8((2, 16)), "b": random_fp8((16, 4)), "a_scale": torch.ones(1), "b_scale": torch.ones(1)}
    with pytest.raises(ArgumentError, match=message):
        mm_fp8(**{**call, **arguments})
