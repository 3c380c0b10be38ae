"""`mm_bf16` and `bmm_bf16` against float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from warploom.core.errors import ArgumentError, UnsupportedError
from warploom.core.testing import assert_close, cases, poison_like, random_normal, random_strided
from warploom.gemm import bmm_bf16, mm_bf16

HALF = (torch.bfloat16, torch.float16)
OUT = (torch.bfloat16, torch.float16, torch.float32)


@pytest.mark.parametrize(*cases(m=[0, 1, 7], n=[1, 24], k=[0, 5, 64], dtype=HALF, out_dtype=OUT, bias=[False, True]))
def test_mm(case):
    a = random_normal((case.m, case.k), case.dtype, seed=1)
    b = random_normal((case.k, case.n), case.dtype, seed=2)
    bias = random_normal((case.n,), torch.float32, seed=3) if case.bias else None
    out = mm_bf16(a, b, bias, out_dtype=case.out_dtype)
    expected = a.double() @ b.double() + (bias.double() if case.bias else 0.0)
    assert out.dtype == case.out_dtype
    assert_close(out, expected)


@settings(max_examples=30)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 300), st.booleans(), st.integers(0, 1000))
def test_mm_of_any_shape_and_strides(m, n, k, transposed, seed):
    a = random_strided((m, k), torch.bfloat16, seed=seed, padding=2)
    b = (
        random_normal((n, k), torch.bfloat16, seed=seed + 1).t()
        if transposed
        else random_normal((k, n), torch.bfloat16)
    )
    assert_close(mm_bf16(a, b), a.double() @ b.double())


@pytest.mark.parametrize(*cases(batch=[0, 1, 3], m=[1, 5], n=[8], k=[0, 33], dtype=HALF))
def test_bmm(case):
    a = random_strided((case.batch, case.m, case.k), case.dtype, seed=1)
    b = random_normal((case.batch, case.n, case.k), case.dtype, seed=2).mT
    assert_close(bmm_bf16(a, b), a.double() @ b.double())


def test_out_is_written_and_returned_also_when_it_is_a_slice():
    a, b = random_normal((4, 16), torch.bfloat16), random_normal((16, 8), torch.bfloat16, seed=1)
    whole = poison_like(torch.empty(6, 20, dtype=torch.float32))
    out = whole[1:5, 4:12]
    assert mm_bf16(a, b, out=out) is out
    assert_close(out, a.double() @ b.double())
    assert whole[:, :4].isnan().all()
    assert whole[0].isnan().all()


def test_sums_are_float32():
    """One large term and many that vanish beside it in bfloat16."""
    a = torch.ones(1, 4097, dtype=torch.bfloat16)
    a[0, 0] = 256.0
    assert mm_bf16(a, torch.ones(4097, 1, dtype=torch.bfloat16), out_dtype=torch.float32).item() == 256 + 4096


def test_nan_and_infinity_stay_in_their_rows():
    a, b = random_normal((3, 16), torch.bfloat16), random_normal((16, 4), torch.bfloat16)
    a[1, 3] = float("nan")
    a[2, 5] = float("inf")
    out = mm_bf16(a, b)
    assert out[0].isfinite().all()
    assert out[1].isnan().all()
    assert out[2].isinf().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"a": torch.zeros(2, 3)}, "`a` must be of dtype bfloat16 or float16, got float32"),
        ({"b": torch.zeros(4, 4).bfloat16()}, "`b` must be of k = 3"),
        ({"b": torch.zeros(3, 4).half()}, "`b` must be of dtype bfloat16"),
        ({"bias": torch.zeros(3)}, "`bias` must be of n = 4"),
        ({"out": torch.zeros(2, 5).bfloat16()}, r"`out` must be of shape \(2, 4\)"),
        ({"out": torch.zeros(2, 4), "out_dtype": torch.bfloat16}, "`out` must be of dtype bfloat16"),
        ({"out": torch.zeros(4, 2).bfloat16().t()}, "`out` must be made of contiguous rows"),
        ({"out": torch.zeros(4).bfloat16().expand(2, 4)}, "`out` must be made of contiguous rows"),
        ({"out_dtype": torch.int32}, "`out_dtype` must be bfloat16, float16, float32 or float8_e4m3fn"),
        ({"out_dtype": "bf61"}, "`out_dtype` must be a torch dtype"),
        ({"a": [1.0]}, "`a` must be a torch tensor or a DLPack tensor"),
        ({"backend": "cublas"}, "Did you mean 'cublaslt'"),
    ],
)
def test_wrong_arguments(arguments, message):
    call = {"a": torch.zeros(2, 3).bfloat16(), "b": torch.zeros(3, 4).bfloat16(), **arguments}
    with pytest.raises(ArgumentError, match=message):
        mm_bf16(**call)


def test_refusal_shows_the_table():
    a = torch.zeros(2, 2).bfloat16()
    with pytest.raises(UnsupportedError, match="needs tensors on an NVIDIA GPU"):
        mm_bf16(a, a, backend="cublaslt")


def test_takes_dlpack():
    a = torch.ones(2, 3).half()
    assert mm_bf16(a.numpy(), a.numpy().T.copy()).tolist() == [[3, 3], [3, 3]]
