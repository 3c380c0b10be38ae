"""Every backend against the reference on the GPU."""

import pytest
import torch
from gemm_oracle import E4M3, E5M2, random_fp8, random_scales

from warploom import gemm
from warploom.core.testing import (
    assert_close,
    cases,
    indptr_of,
    poison_like,
    ragged_lengths,
    random_normal,
    random_strided,
)

pytestmark = [pytest.mark.gpu(min_arch=90)]

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def normal(*shape, dtype=BF16, seed=0):
    return random_normal(shape, dtype, seed=seed, device="cuda")


def fp8(*shape, dtype=E4M3, seed=0):
    return random_fp8(shape, dtype, seed).cuda()


def scales(*shape, seed=0, adversarial=False):
    return random_scales(shape, seed, adversarial).cuda()


BACKENDS = ("cublaslt", "hopper")


def against_reference(function, *arguments, coarse=None, **options):
    """`coarse`: the dtype whose rounding the comparison allows. Tensor cores keep 14 bits of an fp8 sum, and cut where
    the reference rounds, so that float32 outputs are not float32 sums."""
    expected = function(*arguments, backend="reference", **options)
    for backend in BACKENDS:
        if backend == "hopper" and hopper_refuses(*arguments):
            continue
        actual = function(*arguments, backend=backend, **options)
        assert actual.dtype == expected.dtype
        assert_close(actual, expected, dtype=coarse)
    return actual


def hopper_refuses(a, b, *rest):
    """Sums of nothing, and operands of type e5m2 or of two types."""
    return a.shape[-1] == 0 or a.dtype != b.dtype or a.dtype == E5M2


@pytest.mark.parametrize(
    *cases(m=[0, 1, 3, 130], n=[1, 24, 512], k=[0, 7, 1024], dtype=[BF16, FP16], fp32=[False, True], bias=[False, True])
)
def test_mm_bf16(case):
    a, b = normal(case.m, case.k, dtype=case.dtype), normal(case.n, case.k, dtype=case.dtype, seed=1).t()
    bias = normal(case.n, dtype=FP32, seed=2) if case.bias else None
    against_reference(gemm.mm_bf16, a, b, bias, out_dtype=FP32 if case.fp32 else case.dtype, coarse=case.dtype)


@pytest.mark.parametrize(*cases(batch=[0, 1, 5], m=[1, 33], k=[0, 256], dtype=[BF16, FP16], fp32=[False, True]))
def test_bmm_bf16(case):
    a, b = normal(case.batch, case.m, case.k, dtype=case.dtype), normal(case.batch, case.k, 64, dtype=case.dtype)
    against_reference(gemm.bmm_bf16, a, b, out_dtype=FP32 if case.fp32 else case.dtype, coarse=case.dtype)


@pytest.mark.parametrize(
    *cases(
        m=[0, 1, 3, 16, 130],
        k=[0, 16, 1024],
        rows=["neither", "a", "b", "both"],
        out_dtype=[BF16, FP16, FP32],
        bias=[None, BF16, FP32],
    )
)
def test_mm_fp8(case):
    n = 272
    a, weight = fp8(case.m, case.k), fp8(n, case.k, dtype=E5M2, seed=1)
    a_scale = scales(case.m, seed=2) if case.rows in ("a", "both") else scales(1, seed=2)
    b_scale = scales(n, seed=3) if case.rows in ("b", "both") else scales(1, seed=3)
    bias = normal(n, dtype=case.bias) if case.bias else None
    against_reference(gemm.mm_fp8, a, weight.t(), a_scale, b_scale, bias, out_dtype=case.out_dtype, coarse=BF16)


def test_mm_fp8_with_strides_of_every_kind():
    a = random_strided((33, 512), E4M3, device="cuda", padding=1)
    b = fp8(512, 64, seed=1)  # row-major: copied
    out = poison_like(torch.empty(40, 100, dtype=BF16, device="cuda"))[3:36, 5:69]
    against_reference(gemm.mm_fp8, a, b, scales(1), scales(1), out_dtype=BF16)
    assert gemm.mm_fp8(a, b, scales(1), scales(1), out=out, backend="cublaslt") is out
    assert_close(out, gemm.mm_fp8(a, b, scales(1), scales(1), backend="reference"))


def test_bmm_fp8():
    a, b = fp8(3, 17, 256), fp8(3, 48, 256, seed=1).mT
    against_reference(gemm.bmm_fp8, a, b, scales(1), scales(1, seed=1), BF16)


@pytest.mark.parametrize(
    *cases(
        m=[0, 1, 2, 3, 4, 7, 8, 12, 16, 17, 20, 36, 128, 300],
        n=[16, 128, 272, 1024],
        k=[0, 16, 128, 512, 640, 2000, 2048],
        granularity=[(1, 128, 128), (1, 1, 128), (128, 128, 128)],
    )
)
def test_groupwise(case):
    gm, gn, gk = case.granularity
    blocks = -(-case.k // gk)
    a, b = fp8(case.m, case.k), fp8(case.n, case.k, seed=1)
    a_scale, b_scale = scales(-(-case.m // gm), blocks, seed=2), scales(-(-case.n // gn), blocks, seed=3)
    against_reference(gemm.gemm_fp8_nt_groupwise, a, b, a_scale, b_scale, None, case.granularity)
    transposed = a_scale.t().contiguous(), b_scale.t().contiguous()
    against_reference(gemm.gemm_fp8_nt_groupwise, a, b, *transposed, "MN", case.granularity)


@pytest.mark.parametrize(*cases(out_dtype=[BF16, FP16, FP32], b_dtype=[E4M3, E5M2], m=[5, 64]))
def test_groupwise_types(case):
    a, b = fp8(case.m, 1024), fp8(128, 1024, dtype=case.b_dtype, seed=1)
    arguments = a, b, scales(case.m, 8), scales(1, 8, seed=1)
    against_reference(gemm.gemm_fp8_nt_groupwise, *arguments, out_dtype=case.out_dtype, coarse=BF16)


@pytest.mark.parametrize("seed", range(4))
def test_groupwise_adversarial_scales(seed):
    a, b = fp8(64, 1024, seed=seed), fp8(256, 1024, seed=seed + 1)
    arguments = a, b, scales(64, 8, seed=seed, adversarial=True), scales(2, 8, seed=seed)
    against_reference(gemm.gemm_fp8_nt_groupwise, *arguments, out_dtype=FP32, coarse=BF16)


def test_groupwise_nan_stays_in_its_row():
    a, b, a_scale = fp8(32, 512), fp8(128, 512, seed=1), scales(32, 4)
    a.view(torch.uint8)[3, 200] = 0x7F
    a_scale[5, 1] = float("nan")
    out = against_reference(gemm.gemm_fp8_nt_groupwise, a, b, a_scale, scales(1, 4))
    assert out.isnan().any(1).nonzero().flatten().tolist() == [3, 5]


@pytest.mark.parametrize("m", [1, 4, 128, 500])
def test_blockscale_gemm_is_close_to_the_product_in_bf16(m):
    x, weight = normal(m, 2048), normal(512, 2048, seed=1)
    out = against_reference(gemm.fp8_blockscale_gemm_sm90, x, weight)
    exact = x.double() @ weight.double().t()
    assert (out.double() - exact).norm() / exact.norm() < 0.06


@pytest.mark.parametrize(
    *cases(groups=[1, 3, 64], longest=[0, 1, 200], n=[8, 256], k=[8, 512], transposed=[False, True], own=[False, True])
)
def test_grouped_mm_bf16(case):
    lengths = ragged_lengths(case.groups, case.longest)
    a = normal(int(lengths.sum()), case.k)
    b = (
        normal(case.groups, case.k, case.n, seed=1).mT
        if case.transposed
        else normal(case.groups, case.n, case.k, seed=1)
    )
    indptr = indptr_of(lengths, "cuda")
    out = torch.empty(a.shape[0], case.n, dtype=BF16, device="cuda") if case.own else None
    expected = gemm.grouped_mm_bf16(a, b, indptr, backend="reference")
    for backend in BACKENDS:
        assert_close(gemm.grouped_mm_bf16(a, b, indptr, out, backend=backend), expected)


@pytest.mark.parametrize(*cases(groups=[1, 3, 64], longest=[0, 1, 200], scaled=[False, True]))
def test_grouped_mm_fp8(case):
    lengths = ragged_lengths(case.groups, case.longest)
    rows = int(lengths.sum())
    a, b = fp8(rows, 512), fp8(case.groups, 256, 512, seed=1)
    options = {"a_scale": scales(rows), "b_scale": scales(case.groups, 256, seed=1)} if case.scaled else {}
    against_reference(gemm.grouped_mm_fp8, a, b, indptr_of(lengths, "cuda"), **options)


@pytest.mark.parametrize(*cases(batch=[1, 5, 64], column_major=[False, True], indexed=[False, True]))
def test_segments(case):
    lengths = ragged_lengths(case.batch, 40)
    x = normal(int(lengths.sum()), 512)
    weights = normal(64, 64, 512, seed=1) if case.column_major else normal(64, 512, 64, seed=1)
    indices = torch.randint(64, (case.batch,), device="cuda", dtype=torch.int32) if case.indexed else None

    def run(backend):
        return gemm.SegmentGEMMWrapper(backend=backend).run(
            x, weights, case.batch, case.column_major, seg_lens=lengths.cuda(), weight_indices=indices
        )

    for backend in BACKENDS:
        assert_close(run(backend), run("reference"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_groups_of_a_captured_graph_may_change(backend):
    a, b = normal(300, 256), normal(8, 128, 256, seed=1)
    indptr = indptr_of([0] * 8, "cuda")
    gemm.grouped_mm_bf16(a, b, indptr, backend=backend)  # cuBLASLt and CUTLASS set up on first use
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = gemm.grouped_mm_bf16(a, b, indptr, backend=backend)
    for seed in range(3):
        lengths = ragged_lengths(8, 37, seed)
        indptr.copy_(indptr_of(lengths))
        graph.replay()
        rows = int(lengths.sum())
        assert_close(out[:rows], gemm.grouped_mm_bf16(a, b, indptr, backend="reference")[:rows])


@pytest.mark.parametrize("backend", ["reference", "hopper"])
def test_masks_of_a_captured_graph_may_change(backend):
    a, b = fp8(4, 16, 256), fp8(4, 128, 256, seed=1)
    arguments = a, b, scales(4, 16, 2), scales(4, 1, 2, seed=1)
    masked = torch.zeros(4, dtype=torch.int32, device="cuda")
    run = gemm.batch_gemm_fp8_nt_groupwise_masked
    run(*arguments, masked, 8, backend=backend)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(*arguments, masked, 8, backend=backend)
    masked.copy_(torch.tensor([16, 0, 3, 1]))
    graph.replay()
    expected = run(*(x.cpu() for x in arguments), masked.cpu(), 8)
    for group, rows in enumerate(masked.tolist()):
        assert_close(out[group, :rows], expected[group, :rows])


def test_block_scaled_product_in_a_graph():
    x, weight = normal(64, 1024), fp8(256, 1024)
    weight_scale = scales(2, 8)
    run = gemm.fp8_blockscale_gemm_sm90
    run(x, weight, None, weight_scale)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(x, weight, None, weight_scale)
    x.copy_(normal(64, 1024, seed=9))
    graph.replay()
    assert_close(out, run(x, weight, None, weight_scale, backend="reference"))
