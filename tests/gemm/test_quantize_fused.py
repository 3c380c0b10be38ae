"""SiLU-and-multiply and RMSNorm with quantisation: the reference against float64, arguments, and who serves what."""

import numpy as np
import pytest
import torch
from gemm_oracle import E4M3, E5M2, assert_quantized, rmsnorm, silu_and_mul
from hypothesis import given, settings
from hypothesis import strategies as st

from warploom.core.errors import ArgumentError
from warploom.core.settings import settings as warploom_settings
from warploom.core.testing import cases, poison_like, random_normal, random_strided
from warploom.gemm import per_tensor_quant_fp8, per_token_group_quant_fp8, rmsnorm_quant_fp8, silu_and_mul_quant_fp8
from warploom.gemm.backends.cuda.quantize_fused import row_in_registers
from warploom.gemm.problems.quantize_fused import RmsNormQuantProblem, SiluAndMulQuantProblem
from warploom.gemm.quantize_fused import RMSNORM_QUANT_FP8, SILU_AND_MUL_QUANT_FP8

BF16, FP16, FP32 = FLOATS = (torch.bfloat16, torch.float16, torch.float32)
INF, NAN = float("inf"), float("nan")
X4 = torch.zeros(2, 3, 2, 8)


def same(got, expected):
    """Equal to the bit."""
    for x, y in zip(got, expected, strict=True):
        integers = torch.uint8 if x.dtype.itemsize == 1 else torch.int32
        assert torch.equal(x.contiguous().view(integers), y.contiguous().view(integers))


@pytest.mark.parametrize(
    *cases(
        shape=[(0, 256), (1, 256), (5, 602), (3, 0)],
        group=[128, 32, 7],
        dtype=FLOATS,
        out=[E4M3, E5M2],
        ue8m0=[False, True],
    )
)
def test_silu_of_groups(case):
    x = random_normal(case.shape, case.dtype, seed=1, scale=5.0)
    q, scale = silu_and_mul_quant_fp8(x, case.group, dtype=case.out, scale_ue8m0=case.ue8m0)
    assert q.dtype == case.out
    assert q.shape == (case.shape[0], case.shape[1] // 2)
    assert scale.shape == (case.shape[0], -(-case.shape[1] // 2 // case.group))
    if q.numel():
        assert_quantized(q, scale, *silu_and_mul(x), case.group, power_of_two=case.ue8m0)


@pytest.mark.parametrize(*cases(shape=[(0, 8), (4, 600), (2, 3, 4, 16)], dtype=FLOATS, out=[E4M3, E5M2]))
def test_silu_with_a_given_scale(case):
    x = random_normal(case.shape, case.dtype, seed=1, scale=5.0)
    scale = torch.tensor(0.01)
    q, returned = silu_and_mul_quant_fp8(x, None, dtype=case.out, scale=scale)
    assert returned.data_ptr() == scale.data_ptr()
    assert returned.shape == (1,)
    y, error = (part.flatten(0, -2) for part in silu_and_mul(x))
    assert_quantized(q.flatten(0, -2), returned, y, error)


def test_results_are_quantised_as_float32():
    """The codes are those of the unfused quantiser of float32 values, not of bfloat16 ones."""
    x = random_normal((64, 512), BF16, scale=4.0)
    gate, factor = x.float().chunk(2, -1)
    y = torch.nn.functional.silu(gate) * factor
    same(silu_and_mul_quant_fp8(x), per_token_group_quant_fp8(y))
    scale = torch.tensor([0.01])
    same(silu_and_mul_quant_fp8(x, None, scale=scale), per_tensor_quant_fp8(y, scale))
    assert (silu_and_mul_quant_fp8(x)[0].float() != per_token_group_quant_fp8(y.bfloat16())[0].float()).any()
    wide = x.float()
    y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)
    same(rmsnorm_quant_fp8(x, torch.ones(512)), per_token_group_quant_fp8(y))


# Gates at which exp overflows or vanishes, and values at the ends of the range.
numbers = st.one_of(
    st.sampled_from(
        [0.0, -0.0, 1.0, -86.9, -87.1, -88.9, 90.0, 1e-10, 1e-30, 3e-39, 1.5e-45, 3.3e38, -3.3e38, INF, -INF, NAN]
    ),
    st.floats(width=32),
    st.floats(-100, 100, width=32),
)


@settings(max_examples=150)
@given(
    st.lists(st.tuples(numbers, numbers), min_size=1, max_size=24),
    st.integers(1, 8),
    st.sampled_from([E4M3, E5M2]),
    st.booleans(),
)
def test_silu_of_awkward_values(pairs, group, dtype, ue8m0):
    x = torch.tensor(list(zip(*pairs, strict=True)), dtype=torch.float32).view(1, -1)
    q, scale = silu_and_mul_quant_fp8(x, group, dtype=dtype, scale_ue8m0=ue8m0)
    assert_quantized(q, scale, *silu_and_mul(x), group, power_of_two=ue8m0)


def test_silu_at_the_ends_of_its_range():
    gates = torch.tensor([-INF, -1e30, -100.0, INF, 1e30, NAN, 0.0])
    q, _ = silu_and_mul_quant_fp8(torch.cat([gates, torch.ones(7)]), None, scale=torch.ones(1))
    assert q.float().tolist()[:5] == [0.0, 0.0, 0.0, 448.0, 448.0]
    assert q.isnan().tolist() == [False] * 5 + [True, False]
    q, scale = silu_and_mul_quant_fp8(torch.zeros(2, 512).bfloat16(), eps=1e-4)
    assert (q.float() == 0).all()
    assert (scale == np.float32(np.float32(1e-4) / np.float32(448))).all()


@pytest.mark.parametrize(
    *cases(
        counts=[(), (0,), (3, 0, 7, 1)], index=[torch.int32, torch.int64], column_major=[False, True], group=[32, None]
    )
)
def test_masked_rows(case):
    max_m, d = 7, 64
    x = random_normal((len(case.counts), max_m, 2 * d), BF16)
    counts = torch.tensor(case.counts, dtype=case.index)
    out = poison_like(torch.empty(len(case.counts), max_m, d, dtype=E4M3))
    layout = (
        torch.empty(len(case.counts), 2, max_m).mT if case.column_major else torch.empty(len(case.counts), max_m, 2)
    )
    given = {"scale": torch.tensor([0.02])} if case.group is None else {"out_scale": poison_like(layout)}
    q, scale = silu_and_mul_quant_fp8(x, case.group, out=out, masked_m=counts, **given)
    assert q is out
    for i, rows in enumerate(case.counts):
        mine = scale if case.group is None else scale[i, :rows]
        assert_quantized(q[i, :rows], mine, *silu_and_mul(x[i, :rows]), case.group)
        assert (q[i, rows:].view(torch.uint8) == 0xFF).all()
        assert case.group is None or scale[i, rows:].isnan().all()


@pytest.mark.parametrize(
    *cases(
        shape=[(0, 256), (1, 1), (5, 602), (2, 3, 40)],
        group=[128, 7, -1],
        dtype=FLOATS,
        residual=[None, BF16, FP32],
        out=[E4M3, E5M2],
        ue8m0=[False, True],
    )
)
def test_rmsnorm(case):
    x = random_normal(case.shape, case.dtype, seed=1, scale=3.0)
    weight = random_normal(case.shape[-1:], case.dtype, seed=2)
    residual = None if case.residual is None else random_normal(case.shape, case.residual, seed=3)
    total = x if residual is None else (x.float() + residual.float()).to(case.residual)
    q, scale = rmsnorm_quant_fp8(x, weight, residual, 1e-5, case.group, dtype=case.out, scale_ue8m0=case.ue8m0)
    assert residual is None or torch.equal(residual, total)
    groups = 1 if case.group == -1 else -(-case.shape[-1] // case.group)
    assert scale.shape == (*case.shape[:-1], groups)
    if not q.numel():
        return
    y, error = (part.flatten(0, -2) for part in rmsnorm(total, weight, 1e-5))
    group = case.shape[-1] if case.group == -1 else case.group
    assert_quantized(q.flatten(0, -2), scale.flatten(0, -2), y, error, group, power_of_two=case.ue8m0)


def test_rmsnorm_with_a_given_scale():
    x, weight, residual = (
        random_normal((9, 96), BF16),
        random_normal((96,), BF16, seed=1),
        random_normal((9, 96), BF16, seed=2),
    )
    total = x + residual
    scale = torch.tensor(0.004)
    q, returned = rmsnorm_quant_fp8(x, weight, residual, group_size=None, scale=scale)
    assert returned.data_ptr() == scale.data_ptr()
    assert torch.equal(residual, total)
    assert_quantized(q, returned, *rmsnorm(total, weight))
    assert (q.float().abs() == 448).any()  # some saturate


def test_rmsnorm_of_broken_and_of_empty_rows():
    x = random_normal((6, 256), FP32)
    x[1, 3], x[2, 5], x[3] = NAN, -INF, 0.0
    x[4] *= 1e30  # its squares are infinite
    x[5] *= 1e-30
    q, scale = rmsnorm_quant_fp8(x, torch.ones(256))
    assert q[1].isnan().all()
    assert scale[1].isnan().all()
    assert q[2].isnan().tolist() == [i < 128 for i in range(256)]
    assert scale[2].isnan().tolist() == [True, False]
    for row in (3, 4):
        assert (q[row].float() == 0).all()
        assert (scale[row] == np.float32(np.float32(1e-10) / np.float32(448))).all()
    assert_quantized(q, scale, *rmsnorm(x, torch.ones(256)), 128)


def test_strided_inputs_and_own_outputs():
    x = random_strided((3, 40, 320), FP16, seed=1, padding=1, last_contiguous=False)
    residual = random_strided((3, 40, 320), FP16, seed=2, padding=3, last_contiguous=False)
    weight = random_strided((320,), FP16, seed=3, padding=1, last_contiguous=False)
    total = x + residual
    for columns, quantise in (
        (160, lambda **outputs: silu_and_mul_quant_fp8(x, **outputs)),
        (320, lambda **outputs: rmsnorm_quant_fp8(x, weight, residual, **outputs)),
    ):
        groups = -(-columns // 128)
        out = poison_like(torch.empty(3, 40, columns, dtype=E4M3))
        out_scale = poison_like(torch.empty(3, groups, 80))[:, :, ::2].mT
        q, scale = quantise(out=out, out_scale=out_scale)
        assert q is out
        assert scale is out_scale
        y, error = silu_and_mul(x) if columns == 160 else rmsnorm(total, weight)
        for i in range(3):
            assert_quantized(q[i], scale[i], y[i], error[i], 128)
    assert torch.equal(residual, total)


@pytest.mark.parametrize(*cases(rows=[1, 4, 6], aligned=[False, True], lead=[(), (2,), (2, 3)]))
def test_column_major_scales(case):
    x, weight = random_normal((*case.lead, case.rows, 512), BF16, seed=1), torch.ones(512)
    for quantise in (silu_and_mul_quant_fp8, lambda x, **options: rmsnorm_quant_fp8(x, weight, **options)):
        q, scale = quantise(x, column_major_scales=True, scale_tma_aligned=case.aligned)
        padded = -(-case.rows // 4) * 4 if case.aligned else case.rows
        assert scale.stride()[-2:] == (1, padded)
        same((q, scale), quantise(x))


def test_one_dimension_is_one_token():
    x = torch.arange(8.0)
    same(silu_and_mul_quant_fp8(x, 4), [part[0] for part in silu_and_mul_quant_fp8(x[None], 4)])
    same(rmsnorm_quant_fp8(x, x, group_size=-1), [part[0] for part in rmsnorm_quant_fp8(x[None], x, group_size=-1)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.zeros(2, 8, dtype=torch.float64)}, "`x` must be of dtype bfloat16 or float16 or float32"),
        ({"x": torch.tensor(1.0)}, "`x` must be a tensor"),
        ({"x": torch.zeros(2, 7)}, "`x` must be of an even number of channels"),
        ({"group_size": 0}, "`group_size` must be a positive integer"),
        ({"group_size": -1}, "`group_size` must be a positive integer"),
        ({"group_size": None}, "`scale` must be given where `group_size` is None"),
        ({"scale": torch.ones(1)}, "`group_size` must be None where `scale` is given"),
        ({"group_size": None, "scale": torch.ones(2)}, "`scale` must be one float32"),
        ({"group_size": None, "scale": torch.ones(1), "out_scale": torch.ones(1)}, "`out_scale` must be None"),
        ({"eps": 0.0}, "`eps` must be at least 1e-30"),
        ({"dtype": torch.int8}, "`dtype` must be float8_e4m3fn or float8_e5m2"),
        ({"out": torch.zeros(2, 8).to(E4M3)}, r"`out` must be of shape \(2, 4\)"),
        ({"out_scale": torch.zeros(2, 2)}, r"`out_scale` must be of shape \(2, 1\)"),
        ({"masked_m": torch.ones(2).int()}, r"`x` must be a tensor \[tensors, max_m, channels\]"),
        ({"x": torch.zeros(2, 3, 8), "masked_m": torch.ones(3).int()}, "`masked_m` must be of tensors = 2"),
        ({"x": torch.zeros(2, 3, 8), "masked_m": torch.ones(2)}, "`masked_m` must be of dtype int32 or int64"),
        ({"backend": "cuda"}, "needs tensors on an NVIDIA GPU"),
    ],
)
def test_wrong_arguments_of_silu(arguments, message):
    error = NotImplementedError if "backend" in arguments else ArgumentError
    with pytest.raises(error, match=message):
        silu_and_mul_quant_fp8(**{"x": torch.zeros(2, 8), **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.zeros(2, 8).int()}, "`x` must be of dtype bfloat16 or float16 or float32"),
        ({"x": torch.zeros(2, 0), "weight": torch.ones(0)}, "`x` must be of at least one channel"),
        ({"weight": torch.ones(7)}, "`weight` must be of hidden = 8"),
        ({"weight": torch.ones(8).double()}, "`weight` must be of dtype"),
        ({"residual": torch.ones(3, 8)}, "`residual` must be of lead = 2"),
        ({"residual": torch.ones(1, 2, 8)}, r"`residual` must be of shape \(2, 8\)"),
        ({"residual": torch.ones(1, 8).expand(2, 8)}, "`residual` must be of elements that do not repeat"),
        ({"x": X4, "residual": torch.ones(3, 2, 2, 8).transpose(0, 1)}, "`residual` must be contiguous when"),
        ({"norm_eps": -1.0}, "`norm_eps` must be at least 0"),
        ({"norm_eps": NAN}, "`norm_eps` must be at least 0"),
        ({"group_size": -2}, "`group_size` must be a positive integer"),
        ({"group_size": None}, "`scale` must be given where `group_size` is None"),
        ({"group_size": -1, "out_scale": torch.zeros(2, 8)}, r"`out_scale` must be of shape \(2, 1\)"),
        ({"backend": "cuda"}, "needs tensors on an NVIDIA GPU"),
    ],
)
def test_wrong_arguments_of_rmsnorm(arguments, message):
    error = NotImplementedError if "backend" in arguments else ArgumentError
    with pytest.raises(error, match=message):
        rmsnorm_quant_fp8(**{"x": torch.zeros(2, 8), "weight": torch.ones(8), **arguments})


def test_wrong_counts_are_found_on_request(monkeypatch):
    monkeypatch.setattr(warploom_settings, "debug_checks", True)
    with pytest.raises(ArgumentError, match="`masked_m` must be at least 0 and below 4"):
        silu_and_mul_quant_fp8(torch.zeros(2, 3, 8), masked_m=torch.tensor([3, 4]))


def on_gpu(kind, **fields):
    common = {"device_type": "cuda", "arch": 80, "rows": 4, "columns": 7168, "batch": 1, "group_size": 128}
    dtypes = {"dtype": BF16, "out_dtype": E4M3}
    weights = {"weight_dtype": BF16} if kind is RmsNormQuantProblem else {}
    return kind(**{**common, **dtypes, **weights, **fields})


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, ""),
        ({"group_size": None}, ""),
        ({"group_size": -1}, "has groups of 16, 32"),
        ({"group_size": 96}, "has groups of 16, 32"),
        ({"columns": 1001}, "needs columns a multiple of 8"),
        ({"columns": 1001, "group_size": 96, "aligned": False}, "16-byte aligned"),
        ({"batch": 70000}, "takes at most 65535 batches"),
        ({"batch": 1024, "masked": True}, ""),
        ({"batch": 1025, "masked": True}, "takes at most 1024 batches"),
        ({"rows": 2**31 // 448 + 1}, "pieces of 16 columns"),
        ({"arch": 75}, "needs sm_80"),
    ],
)
def test_what_the_silu_kernel_serves(fields, reason):
    row = SILU_AND_MUL_QUANT_FP8.explain(on_gpu(SiluAndMulQuantProblem, **fields)).rows[0]
    assert bool(row.support) == (not reason)
    assert reason in "; ".join(row.support.reasons)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, ""),
        ({"group_size": None, "columns": 16384, "residual_dtype": BF16}, ""),
        ({"group_size": -1}, ""),
        ({"group_size": 1024}, "has groups of 16, 32"),
        ({"columns": 16392}, "at most 16384 columns in registers"),
        ({"columns": 100}, "needs columns a multiple of 8"),
        ({"weight_dtype": FP32}, "needs a weight of torch.bfloat16"),
        ({"residual_dtype": FP32}, "needs a residual of torch.bfloat16"),
        ({"batch": 70000}, "takes at most 65535 batches"),
    ],
)
def test_what_the_rmsnorm_kernel_serves(fields, reason):
    row = RMSNORM_QUANT_FP8.explain(on_gpu(RmsNormQuantProblem, **fields)).rows[0]
    assert bool(row.support) == (not reason)
    assert reason in "; ".join(row.support.reasons)


@pytest.mark.parametrize("group", [16, 128, 512, -1, None])
def test_threads_hold_every_row(group):
    for columns in range(4, 16385, 4):
        threads, pieces = row_in_registers(columns, group)
        assert threads * pieces * 16 >= columns
        assert threads % 32 == 0
        assert threads <= 512
        assert pieces <= 2
