"""The library backends without a GPU: what they refuse and why, and the operands that they hand to torch.

torch's fp8 products check layouts on a GPU only. `_scaled_mm` and `_scaled_mm_v2` are replaced here by stand-ins that
apply the same checks and cuBLASLt's own stride rule, and compute in float64.
"""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from gemm_oracle import E4M3, E5M2, block_scaled, random_fp8, random_scales

from warploom.core.testing import assert_close, cases, indptr_of, random_normal, random_strided
from warploom.gemm.backends.cublaslt import groupwise as groupwise_module
from warploom.gemm.backends.cublaslt import scaled_mm as scaled_mm_module
from warploom.gemm.dense import BMM_BF16, MM_BF16
from warploom.gemm.grouped import GROUPED_MM_BF16, GROUPED_MM_FP8
from warploom.gemm.groupwise import GEMM_FP8_NT_GROUPWISE
from warploom.gemm.problems.dense import DenseProblem
from warploom.gemm.problems.grouped import GroupedProblem, GroupedScaledProblem
from warploom.gemm.problems.groupwise import GroupwiseProblem
from warploom.gemm.problems.scaled import ScaledProblem
from warploom.gemm.problems.segment import SegmentProblem
from warploom.gemm.scaled import BMM_FP8, MM_FP8
from warploom.gemm.segment import SEGMENT_GEMM

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
H200 = {"device_type": "cuda", "arch": 90, "device_name": "NVIDIA H200"}
FP8 = {"a_dtype": E4M3, "b_dtype": E4M3, "out_dtype": BF16}


def blocks_of(size):
    return -(-size // 128)


def check_operands(a, b, out, k_multiple=16):
    """Row-major times column-major with 16-byte aligned rows, the checks of torch and cuBLASLt."""
    assert a.stride(1) == 1
    assert a.stride(0) >= a.shape[1]
    assert b.stride(0) == 1
    assert b.stride(1) >= b.shape[0]
    assert a.stride(0) % 16 == 0
    assert b.stride(1) % 16 == 0
    assert a.shape[1] % k_multiple == 0
    assert b.shape[1] % 16 == 0
    assert out.is_contiguous()
    assert all(x.data_ptr() % 16 == 0 for x in (a, b, out))


def check_row_scale(scale, rows, k):
    """1x128 scales, rows contiguous. cuBLASLt rounds their K stride up to 4, which torch has no way to say."""
    assert scale.shape == (rows, blocks_of(k))
    assert scale.stride() == (1, rows)
    assert rows % 4 == 0
    assert scale.data_ptr() % 16 == 0


def scaled_mm(a, b, a_scale, b_scale, bias=None, *, out_dtype, out):
    """``torch._scaled_mm``: recognises the scales by their shapes as ScaledBlas.cpp does."""
    check_operands(a, b, out)
    (m, k), n = a.shape, b.shape[1]
    by_block = a_scale.numel() == 1 and b_scale.numel() == 1
    by_row = a_scale.shape == (m, 1) and b_scale.shape == (1, n) and a_scale.is_contiguous() and b_scale.is_contiguous()
    if by_block or by_row:
        product = (a.double() * a_scale.double()) @ (b.double() * b_scale.double())
    else:
        check_row_scale(a_scale, m, k)
        if b_scale.shape == (blocks_of(k), blocks_of(n)):
            assert b_scale.stride(0) == 1
            assert b_scale.shape[1] == 1 or b_scale.stride(1) == blocks_of(k)
            assert blocks_of(k) % 4 == 0, "cuBLASLt pads the K blocks of 128x128 scales"
            granularity = (1, 128, 128)
        else:
            check_row_scale(b_scale.t(), n, k)
            granularity = (1, 1, 128)
        product = block_scaled(a, b.t(), a_scale, b_scale.t(), granularity)
    if bias is not None:
        assert out_dtype != FP32
        assert bias.dtype == out_dtype
        product = product + bias.double()
    assert out_dtype == out.dtype
    out.copy_(product)


def scaled_mm_v2(a, b, a_scale, a_recipe, a_swizzle, b_scale, b_recipe, b_swizzle, bias, out_dtype, *, out):
    """``torch._scaled_mm_v2`` with 1x128 scales of `a` and padded 128x128 scales of `b`."""
    check_operands(a, b, out)
    (m, k), n = a.shape, b.shape[1]
    assert (a_recipe, b_recipe, a_swizzle, b_swizzle, bias) == ([4], [5], [], [], None)
    check_row_scale(a_scale[0], m, k)
    padded = -(-blocks_of(k) // 4) * 4
    assert b_scale[0].shape == (padded, blocks_of(n))
    assert b_scale[0].stride() == (1, padded)
    assert out_dtype == out.dtype
    out.copy_(block_scaled(a, b.t(), a_scale[0], b_scale[0].t()[:, : blocks_of(k)], (1, 128, 128)))


@pytest.fixture(autouse=True)
def torch_of_an_h200(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch, "_scaled_mm", scaled_mm)
    monkeypatch.setattr(torch.ops.aten, "_scaled_mm_v2", SimpleNamespace(out=scaled_mm_v2))
    scaled_mm_module.cuda_version.cache_clear()
    yield
    scaled_mm_module.cuda_version.cache_clear()


def reasons(operator, problem, **changes):
    return "; ".join(operator.backends["cublaslt"].check(dataclasses.replace(problem, **changes)).reasons)


DENSE = DenseProblem(m=4, n=8, k=8, dtype=BF16, out_dtype=BF16, **H200)
SCALED = ScaledProblem(m=4, n=32, k=64, **FP8, **H200)
BY_ROW = dataclasses.replace(SCALED, a_scaling="row")
GROUPWISE = GroupwiseProblem(m=4, n=256, k=512, **FP8, **H200)
GROUPED = GroupedProblem(rows=9, n=32, k=64, groups=3, dtype=BF16, out_dtype=BF16, **H200)
GROUPED_SCALED = GroupedScaledProblem(rows=9, n=32, k=64, groups=3, **FP8, **H200)
SEGMENT = SegmentProblem(
    rows=9,
    batch=3,
    num_weights=4,
    d_in=64,
    d_out=32,
    dtype=BF16,
    out_dtype=BF16,
    column_major=True,
    indexed=True,
    **H200,
)


@pytest.mark.parametrize(
    ("operator", "problem"),
    [
        (MM_BF16, DENSE),
        (BMM_BF16, DENSE),
        (MM_FP8, SCALED),
        (MM_FP8, BY_ROW),
        (BMM_FP8, SCALED),
        (GEMM_FP8_NT_GROUPWISE, GROUPWISE),
        (GROUPED_MM_BF16, GROUPED),
        (GROUPED_MM_FP8, GROUPED_SCALED),
        (SEGMENT_GEMM, SEGMENT),
    ],
)
def test_serves_an_h200(operator, problem):
    assert reasons(operator, problem) == ""
    assert reasons(operator, problem, device_type="cpu", arch=0) == "needs tensors on an NVIDIA GPU"


@pytest.mark.parametrize(
    ("operator", "problem", "changes", "reason"),
    [
        (MM_BF16, DENSE, {"out_dtype": FP16}, "writes torch.bfloat16 or float32 from torch.bfloat16"),
        (MM_FP8, SCALED, {"k": 40}, "needs k a multiple of 16 for fp8, k is 40"),
        (MM_FP8, SCALED, {"n": 9}, "needs n a multiple of 16 for fp8, n is 9"),
        (MM_FP8, SCALED, {"a_dtype": E5M2, "b_dtype": E5M2}, "no e5m2 by e5m2"),
        (MM_FP8, SCALED, {"arch": 80}, "needs sm_89 or later"),
        (MM_FP8, BY_ROW, {"arch": 89, "out_dtype": FP16}, "row scales write only bfloat16"),
        (MM_FP8, BY_ROW, {"arch": 89, "a_dtype": E5M2}, "row scales need e4m3 operands"),
        (GEMM_FP8_NT_GROUPWISE, GROUPWISE, {"arch": 100}, "on sm_90 only"),
        (GEMM_FP8_NT_GROUPWISE, GROUPWISE, {"granularity": (1, 128, 64)}, "blocks of 128 along K"),
        (GROUPED_MM_BF16, GROUPED, {"dtype": FP16}, "multiplies bfloat16, not torch.float16"),
        (GROUPED_MM_BF16, GROUPED, {"out_dtype": FP32}, "writes bfloat16, not torch.float32"),
        (GROUPED_MM_BF16, GROUPED, {"arch": 80}, "on sm_80"),
        (GROUPED_MM_BF16, GROUPED, {"n": 33}, "multiples of 8, got 33 and 64"),
        (GROUPED_MM_BF16, GROUPED, {"groups": 1024}, "at most 1023 groups"),
        (GROUPED_MM_FP8, GROUPED_SCALED, {"a_dtype": E5M2}, "e4m3 by e4m3"),
        (GROUPED_MM_FP8, GROUPED_SCALED, {"k": 72}, "multiples of 16, got 32 and 72"),
        (SEGMENT_GEMM, SEGMENT, {"d_in": 12}, "multiples of 8, got 32 and 12"),
    ],
)
def test_refuses_with_the_reason(operator, problem, changes, reason):
    assert reason in reasons(operator, problem, **changes)


def test_refuses_block_scales_of_older_libraries(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    scaled_mm_module.cuda_version.cache_clear()
    assert "CUDA 12.9 or later, this one has 12.8" in reasons(GEMM_FP8_NT_GROUPWISE, GROUPWISE)
    assert "row scales write only bfloat16" in reasons(MM_FP8, BY_ROW, out_dtype=FP16)


def test_refuses_k_blocks_that_an_older_torch_cannot_pad(monkeypatch):
    monkeypatch.setattr(groupwise_module, "has_aten", lambda name: False)
    assert "torch 2.10 or later" in reasons(GEMM_FP8_NT_GROUPWISE, GROUPWISE, k=384)
    assert reasons(GEMM_FP8_NT_GROUPWISE, GROUPWISE, k=384, granularity=(1, 1, 128)) == ""


@pytest.mark.parametrize(
    *cases(
        m=[0, 1, 3, 4, 17, 20, 64],
        k=[0, 128, 512, 640, 704],
        granularity=[(1, 128, 128), (1, 1, 128), (128, 128, 128), (1, 64, 128)],
    )
)
def test_block_scales_reach_torch_in_its_layouts(case):
    gm, gn, _ = case.granularity
    n, blocks = 272, blocks_of(case.k)
    a, b = random_fp8((case.m, case.k)), random_fp8((n, case.k), seed=1)
    a_scale, b_scale = random_scales((-(-case.m // gm), blocks), seed=2), random_scales((-(-n // gn), blocks), seed=3)
    expected = block_scaled(a, b, a_scale, b_scale, case.granularity)
    problem = dataclasses.replace(GROUPWISE, m=case.m, n=n, k=case.k, granularity=case.granularity)
    backend = GEMM_FP8_NT_GROUPWISE.backends["cublaslt"]
    for layout in ("K", "MN"):
        scale = a_scale if layout == "K" else a_scale.t().contiguous().t()
        out = torch.full((case.m, n), float("nan"), dtype=BF16)
        backend.run(problem, out, a, b, scale, b_scale)
        assert_close(out, expected)


def test_block_scales_with_strided_operands_and_output():
    a, b = random_strided((16, 640), E4M3, seed=1, padding=1), random_strided((32, 640), E4M3, seed=2, padding=1)
    a_scale, b_scale = random_scales((16, 10))[:, ::2], random_scales((5, 1)).t()
    out = torch.empty(16, 48, dtype=BF16)[:, :32]
    problem = dataclasses.replace(GROUPWISE, m=16, n=32, k=640)
    GEMM_FP8_NT_GROUPWISE.backends["cublaslt"].run(problem, out, a, b, a_scale, b_scale)
    assert_close(out, block_scaled(a, b, a_scale, b_scale, (1, 128, 128)))


@pytest.mark.parametrize(
    *cases(
        m=[0, 1, 5],
        k=[0, 32],
        rows=["neither", "a", "both"],
        dtype=[BF16, FP32],
        bias=[None, FP32, BF16],
        dense=[False, True],
    )
)
def test_row_scales_reach_torch_in_its_layouts(case):
    n = 48
    a = random_fp8((case.m, case.k)) if case.dense else random_strided((case.m, case.k), E4M3, padding=1)
    weight = random_fp8((n, case.k), seed=1)
    b = weight.t() if case.dense else weight.t().contiguous()
    a_scale = random_scales((case.m, 1) if case.rows != "neither" else (1, 1), seed=2)
    b_scale = random_scales((1, n) if case.rows == "both" else (1, 1), seed=3)
    bias = random_normal((n,), case.bias) if case.bias else None
    out = torch.full((case.m, n), float("nan"), dtype=case.dtype)
    a_scaling = "row" if case.rows != "neither" else "tensor"
    problem = dataclasses.replace(SCALED, m=case.m, n=n, k=case.k, a_scaling=a_scaling, out_dtype=case.dtype)
    MM_FP8.backends["cublaslt"].run(problem, out, a, b, a_scale, b_scale, bias)
    expected = (a.double() * a_scale.double()) @ (b.double() * b_scale.double())
    assert_close(out, expected + (bias.double() if case.bias else 0.0))


def test_single_rows_whose_strides_say_anything():
    """torch tells row- from column-major by strides, also of a dimension of one element."""
    a, b = random_fp8((32, 1)).t(), random_fp8((16, 32)).t()
    assert a.stride() == (1, 1)
    out = torch.empty(1, 16, dtype=BF16)
    problem = dataclasses.replace(SCALED, m=1, n=16, k=32)
    MM_FP8.backends["cublaslt"].run(problem, out, a, b, torch.ones(1, 1), torch.ones(1, 1))
    assert_close(out, a.double() @ b.double())


def test_batches_of_fp8():
    a, b = random_fp8((3, 5, 32)), random_fp8((3, 16, 32)).mT
    out = torch.empty(3, 5, 16, dtype=BF16)
    problem = dataclasses.replace(SCALED, batch=3, m=5, n=16, k=32)
    scale = torch.full((1, 1), 0.5)
    BMM_FP8.backends["cublaslt"].run(problem, out, a, b, scale, scale)
    assert_close(out, 0.25 * (a.double() @ b.double()))


@pytest.mark.parametrize(
    *cases(sizes=[[0], [3, 0, 5]], transposed=[False, True], dense=[False, True], own=[False, True])
)
def test_groups_reach_torch(case):
    """``torch._grouped_mm`` has a CPU implementation."""
    groups, rows = len(case.sizes), sum(case.sizes)
    a = random_normal((rows, 32), BF16) if case.dense else random_strided((rows, 32), BF16, padding=1)
    b = random_normal((groups, 32, 16), BF16).mT if case.transposed else random_normal((groups, 16, 32), BF16)
    out = torch.empty(rows, 16, dtype=BF16) if case.own else None
    problem = dataclasses.replace(GROUPED, rows=rows, n=16, k=32, groups=groups)
    arguments = a, b, indptr_of(case.sizes)
    got = GROUPED_MM_BF16.backends["cublaslt"].run(problem, out, *arguments)
    assert out is None or got is out
    assert_close(got, GROUPED_MM_BF16.backends["reference"].run(problem, None, *arguments))


@pytest.mark.parametrize("column_major", [False, True])
@pytest.mark.parametrize("indexed", [False, True])
def test_segments_reach_torch(column_major, indexed):
    x, weights = random_normal((9, 64), BF16), random_normal((4, 64, 32), BF16, seed=1)
    weights = weights.mT.contiguous() if column_major else weights.mT
    problem = dataclasses.replace(SEGMENT, column_major=column_major, indexed=indexed)
    arguments = x, weights, indptr_of([2, 0, 7]).long(), torch.tensor([3, 0, 1]) if indexed else None
    got = SEGMENT_GEMM.backends["cublaslt"].run(problem, None, *arguments)
    assert_close(got, SEGMENT_GEMM.backends["reference"].run(problem, None, *arguments))
