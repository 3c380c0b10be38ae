"""The kernels that compute what they quantise: values against float64 on the CPU, and codes against the reference.

`exp` and sums differ in their last bits from the reference's, so that a value which lies on the edge between two codes may
get either. `assert_quantized` allows what float32 arithmetic may be off by; that few codes differ is checked beside it.
"""

import functools

import pytest
import torch
from gemm_oracle import E4M3, E5M2, assert_quantized, rmsnorm, silu_and_mul

from warploom.core.errors import UnsupportedError
from warploom.core.testing import cases, poison_like, random_normal, random_strided
from warploom.gemm import rmsnorm_quant_fp8, silu_and_mul_quant_fp8

pytestmark = [pytest.mark.gpu(min_arch=80)]

BF16, FP16, FP32 = FLOATS = (torch.bfloat16, torch.float16, torch.float32)
GROUPS = (16, 32, 64, 128, 256, 512)
INF, NAN = float("inf"), float("nan")
EQUAL_CODES = (
    0.995  # a value lies within float32's error of an edge once in 10000 times; scales of ue8m0 take groups along
)


def rows_of(tensor):
    return tensor.flatten(0, -2) if tensor.dim() > 1 else tensor


def check(got, expected, y_and_error, group, **options):
    """`got` is on the GPU, what it should be on the CPU."""
    q, scale = (part.cpu() for part in got)
    if not q.numel():
        return
    y, error = map(rows_of, y_and_error)
    assert_quantized(rows_of(q), rows_of(scale), y, error, y.shape[1] if group == -1 else group, **options)
    different = q.view(torch.uint8) != expected[0].view(torch.uint8)
    zeros = (q.float() == 0) & (expected[0].float() == 0)  # of either sign
    assert (different & ~zeros).sum() <= 2 + (1 - EQUAL_CODES) * q.numel()


def scale_of(group, device="cpu"):
    return {"scale": torch.tensor([0.02], device=device)} if group is None else {}


def check_silu(x, group=128, *, ue8m0=False, **options):
    """`x` is on the CPU."""
    options["scale_ue8m0"] = ue8m0
    got = silu_and_mul_quant_fp8(x.cuda(), group, backend="cuda", **scale_of(group, "cuda"), **options)
    expected = silu_and_mul_quant_fp8(x, group, backend="reference", **scale_of(group), **options)
    assert got[1].shape == expected[1].shape
    check(got, expected, silu_and_mul(x), group, power_of_two=ue8m0)
    return got


def check_rmsnorm(x, weight, residual=None, group=128, *, ue8m0=False, **options):
    """All are on the CPU; the residual is updated."""
    options["scale_ue8m0"] = ue8m0
    on_gpu = None if residual is None else residual.cuda()
    got = rmsnorm_quant_fp8(
        x.cuda(), weight.cuda(), on_gpu, 1e-5, group, backend="cuda", **scale_of(group, "cuda"), **options
    )
    expected = rmsnorm_quant_fp8(x, weight, residual, 1e-5, group, backend="reference", **scale_of(group), **options)
    total = x if residual is None else residual
    if on_gpu is not None:
        torch.testing.assert_close(on_gpu.cpu(), residual, rtol=0, atol=0, equal_nan=True)
    assert got[1].shape == expected[1].shape
    check(got, expected, rmsnorm(total, weight, 1e-5), group, power_of_two=ue8m0)
    return got


# --- SiLU ---


@pytest.mark.parametrize(
    *cases(
        shape=[(0, 256), (1, 256), (3, 272), (7, 14336), (129, 2048), (2, 5, 1024), (70, 48)],
        group=[*GROUPS, None],
        dtype=FLOATS,
        out=[E4M3, E5M2],
        ue8m0=[False, True],
    )
)
def test_silu(case):
    x = random_normal(case.shape, case.dtype, seed=1, scale=3.0)
    check_silu(x, case.group, dtype=case.out, ue8m0=case.ue8m0)


def awkward(rows, columns, dtype, seed):
    """Values of every magnitude of the type, signed zeros, subnormal numbers, infinities and NaN among them."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(-(2**31), 2**31 - 1, (rows, columns), generator=generator, dtype=torch.int64).to(torch.int32)
    x = bits.view(torch.float32).to(dtype)
    x[1::2] = random_normal((rows // 2, columns), dtype, seed=seed, scale=30.0)
    x[4] = 0.0
    x[5] = torch.tensor([0.0, -0.0]).repeat(columns // 2).to(dtype)
    x[7, 7], x[9, 9], x[11, columns // 3] = INF, -INF, NAN
    x[13] = torch.finfo(dtype).smallest_normal / 4
    x[15] = torch.finfo(dtype).max
    return x


@pytest.mark.parametrize(*cases(dtype=FLOATS, out=[E4M3, E5M2], ue8m0=[False, True], seed=range(3)))
def test_silu_of_awkward_values(case):
    x = awkward(64, 1024, case.dtype, case.seed)
    check_silu(x, dtype=case.out, ue8m0=case.ue8m0)
    check_silu(x, None, dtype=case.out)
    finite = torch.where(x.isfinite(), x, 1.0)
    check_silu(finite, 32, dtype=case.out, ue8m0=case.ue8m0)


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
@pytest.mark.parametrize("out", [E4M3, E5M2], ids=str)
def test_silu_of_every_16_bit_gate(dtype, out):
    """Gates of all codes of the type, alone in their group of magnitudes: each decides its scale."""
    gates = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(dtype).view(-1, 1)
    x = torch.cat([gates, torch.zeros(2**16, 15, dtype=dtype), torch.ones(2**16, 16, dtype=dtype)], 1)
    check_silu(x, 16, dtype=out)


def test_silu_at_the_ends_of_its_range():
    gates = torch.tensor([-INF, -1e30, -100.0, -87.5, INF, 1e30, NAN, 0.0], device="cuda")
    scale = torch.ones(1, device="cuda")
    q, _ = silu_and_mul_quant_fp8(torch.cat([gates, torch.ones_like(gates)]), None, scale=scale, backend="cuda")
    assert q.float().tolist()[:6] == [0.0, 0.0, 0.0, 0.0, 448.0, 448.0]
    assert q.isnan().tolist() == [False] * 6 + [True, False]


def counts_of(case):
    generator = torch.Generator().manual_seed(case.matrices)
    counts = torch.randint(0, case.max_m + 1, (case.matrices,), generator=generator)
    counts[::3] = 0
    counts[-1:] = case.max_m
    return counts


@pytest.mark.parametrize(
    *cases(
        matrices=[0, 1, 3, 256, 1024],
        max_m=[1, 37],
        d=[64, 768, 1032],
        group=[128, 16, 512, None],
        index=[torch.int32, torch.int64],
    )
)
def test_masked_rows(case):
    """Those that count are those of the whole tensor, the others stay as they were."""
    x = torch.randn(case.matrices, case.max_m, 2 * case.d, device="cuda").bfloat16()
    counts = counts_of(case)
    some = torch.stack([counts, counts], 1).to("cuda", case.index)[:, 1]  # strided
    out = poison_like(torch.empty(case.matrices, case.max_m, case.d, dtype=E4M3, device="cuda"))
    given = scale_of(case.group, "cuda")
    if case.group is not None:
        blocks = -(-case.d // case.group)
        given["out_scale"] = poison_like(torch.empty(case.matrices, blocks, case.max_m, device="cuda")).mT
    q, scale = silu_and_mul_quant_fp8(x, case.group, out=out, masked_m=some, backend="cuda", **given)
    assert q is out
    whole_q, whole_scale = silu_and_mul_quant_fp8(x, case.group, backend="cuda", **scale_of(case.group, "cuda"))
    valid = (torch.arange(case.max_m) < counts[:, None]).cuda()
    codes = torch.where(valid[:, :, None], whole_q.view(torch.uint8), 0xFF)
    assert torch.equal(q.view(torch.uint8), codes)
    if case.group is not None:
        kept = torch.where(valid[:, :, None], whole_scale, NAN)
        torch.testing.assert_close(scale, kept, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(*cases(dtype=FLOATS, out=[E4M3, E5M2], ue8m0=[False, True]))
def test_masked_values(case):
    x = random_normal((5, 9, 512), case.dtype, scale=3.0)
    counts = torch.tensor([9, 0, 1, 4, 9], dtype=torch.int32)
    options = {"dtype": case.out, "scale_ue8m0": case.ue8m0}
    q, scale = silu_and_mul_quant_fp8(x.cuda(), masked_m=counts.cuda(), backend="cuda", **options)
    expected = silu_and_mul_quant_fp8(x, masked_m=counts, **options)
    for i, rows in enumerate(counts.tolist()):
        mine = [(part[0][i, :rows], part[1][i, :rows]) for part in ((q, scale), expected)]
        check(*mine, silu_and_mul(x[i, :rows]), 128, power_of_two=case.ue8m0)


def test_counts_beyond_the_tensor_reach_no_further():
    x = torch.randn(4, 8, 512, device="cuda")
    counts = torch.tensor([-5, 8, 1000, -(2**31)], dtype=torch.int32, device="cuda")
    out = poison_like(torch.empty(4, 8, 256, dtype=E4M3, device="cuda"))
    q, _ = silu_and_mul_quant_fp8(x, out=out, masked_m=counts, backend="cuda")
    whole, _ = silu_and_mul_quant_fp8(x, backend="cuda")
    assert torch.equal(q[1:3].view(torch.uint8), whole[1:3].view(torch.uint8))
    assert (q[::3].view(torch.uint8) == 0xFF).all()


def test_graph_replay_after_the_counts_changed():
    x = torch.randn(16, 33, 1024, device="cuda").bfloat16()
    counts = torch.zeros(16, dtype=torch.int32, device="cuda")
    out = torch.empty(16, 33, 512, dtype=E4M3, device="cuda")
    silu_and_mul_quant_fp8(x, out=out, masked_m=counts, backend="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        silu_and_mul_quant_fp8(x, out=out, masked_m=counts, backend="cuda")
    whole, _ = silu_and_mul_quant_fp8(x, backend="cuda")
    for seed in range(3):
        counts.copy_(torch.randint(0, 34, (16,), generator=torch.Generator().manual_seed(seed)))
        out.copy_(poison_like(out))
        graph.replay()
        valid = torch.arange(33, device="cuda") < counts[:, None]
        assert torch.equal(out.view(torch.uint8), torch.where(valid[:, :, None], whole.view(torch.uint8), 0xFF))


# --- RMSNorm ---


@pytest.mark.parametrize(
    *cases(
        shape=[(0, 128), (1, 8), (3, 136), (5, 520), (7, 7168), (33, 1024), (2, 5, 4096), (2, 16384)],
        group=[*GROUPS, -1, None],
        dtype=FLOATS,
        residual=[False, True],
        out=[E4M3, E5M2],
        ue8m0=[False, True],
    )
)
def test_rmsnorm(case):
    x = random_normal(case.shape, case.dtype, seed=1, scale=3.0)
    weight = random_normal(case.shape[-1:], case.dtype, seed=2)
    residual = random_normal(case.shape, case.dtype, seed=3) if case.residual else None
    check_rmsnorm(x, weight, residual, case.group, dtype=case.out, ue8m0=case.ue8m0)


@pytest.mark.parametrize("hidden", [*range(8, 1200, 56), 2880, 5120, 6144, 8192, 12288, 16376])
def test_rmsnorm_of_every_number_of_threads(hidden):
    x, weight = random_normal((3, hidden), BF16, seed=1), random_normal((hidden,), BF16, seed=2)
    for group in (16, 128, 512, -1):
        check_rmsnorm(x, weight, random_normal((3, hidden), BF16, seed=3), group)


@pytest.mark.parametrize(
    *cases(dtype=FLOATS, out=[E4M3, E5M2], ue8m0=[False, True], group=[128, -1, None], seed=range(2))
)
def test_rmsnorm_of_awkward_values(case):
    x = awkward(64, 1024, case.dtype, case.seed)
    weight = random_normal((1024,), case.dtype, seed=case.seed)
    weight[100] = 0.0
    check_rmsnorm(x, weight, None, case.group, dtype=case.out, ue8m0=case.ue8m0)
    check_rmsnorm(
        x, weight, awkward(64, 1024, case.dtype, case.seed + 10), case.group, dtype=case.out, ue8m0=case.ue8m0
    )


def test_residual_may_be_the_input():
    x = random_normal((4, 512), BF16)
    doubled, weight = x + x, torch.ones(512, dtype=BF16)
    both = x.cuda()
    got = rmsnorm_quant_fp8(both, weight.cuda(), both, backend="cuda")
    assert torch.equal(both.cpu(), doubled)
    check(got, rmsnorm_quant_fp8(doubled, weight), rmsnorm(doubled, weight), 128)


# --- Both ---


def quantisers(columns, dtype=BF16):
    """Each as a function of `x`, whose result has so many columns, and the float64 formula of it."""
    weight = random_normal((columns,), dtype, seed=5)
    weight_on = functools.cache(weight.to)  # no copy while a graph is captured

    def normalise(x, **options):
        return rmsnorm_quant_fp8(x, weight_on(x.device), **options)

    return [
        (2 * columns, silu_and_mul_quant_fp8, silu_and_mul),
        (columns, normalise, lambda x: rmsnorm(x, weight)),
    ]


@pytest.mark.parametrize(*cases(rows=[1, 4, 6, 131], aligned=[False, True], lead=[(), (3,)]))
def test_column_major_scales(case):
    for columns, quantise, formula in quantisers(640):
        x = random_normal((*case.lead, case.rows, columns), BF16, seed=1)
        options = {"column_major_scales": True, "scale_tma_aligned": case.aligned}
        got = quantise(x.cuda(), backend="cuda", **options)
        check(got, quantise(x, **options), formula(x), 128)
        assert got[1].stride()[-2:] == (1, -(-case.rows // 4) * 4 if case.aligned else case.rows)


def test_strided_inputs_and_own_outputs():
    for columns, quantise, formula in quantisers(160):
        x = random_strided((3, 40, columns), BF16, seed=1, device="cuda", padding=16)
        assert x.data_ptr() % 16 == 0
        out = poison_like(torch.empty(3, 40, 160, dtype=E4M3, device="cuda"))
        out_scale = poison_like(torch.empty(3, 2, 80, device="cuda"))[:, :, ::2].mT
        got = quantise(x, out=out, out_scale=out_scale, backend="cuda")
        assert got[0] is out
        assert got[1] is out_scale
        check(got, quantise(x.cpu()), formula(x.cpu()), 128)


def test_strided_residual():
    x, weight = random_normal((3, 40, 160), BF16), random_normal((160,), BF16, seed=1)
    residual = random_strided((3, 40, 160), BF16, seed=2, device="cuda", padding=16)
    total = x + residual.cpu()
    got = rmsnorm_quant_fp8(x.cuda(), weight.cuda(), residual, backend="cuda")
    assert torch.equal(residual.cpu(), total)
    check(got, rmsnorm_quant_fp8(total, weight), rmsnorm(total, weight), 128)


@pytest.mark.parametrize(
    ("make", "group", "reason"),
    [
        (lambda: torch.randn(4, 258, device="cuda"), 128, "columns a multiple of 4"),
        (lambda: torch.randn(4, 264, device="cuda")[:, 1:257], 128, "16-byte aligned"),
        (lambda: torch.randn(256, 4, device="cuda").t(), 128, "contiguous columns"),
        (lambda: torch.randn(4, 256, device="cuda"), 96, "has groups of 16, 32"),
    ],
)
def test_refuses_what_it_cannot_do_and_the_reference_does(make, group, reason):
    x = make()
    for quantise, formula in (
        (silu_and_mul_quant_fp8, silu_and_mul),
        (
            lambda x, **options: rmsnorm_quant_fp8(x, torch.ones_like(x[0]), **options),
            lambda x: rmsnorm(x, torch.ones(x.shape[1])),
        ),
    ):
        with pytest.raises(UnsupportedError, match=reason):
            quantise(x, group_size=group, backend="cuda")
        got = quantise(x, group_size=group, backend="reference")
        check(got, quantise(x.cpu(), group_size=group), formula(x.cpu()), group)


def test_rows_that_registers_do_not_hold():
    x, weight = random_normal((2, 16640), BF16), torch.ones(16640, dtype=BF16)
    with pytest.raises(UnsupportedError, match="at most 16384 columns in registers"):
        rmsnorm_quant_fp8(x.cuda(), weight.cuda(), backend="cuda")
    got = rmsnorm_quant_fp8(x.cuda(), weight.cuda(), backend="reference")
    check(got, rmsnorm_quant_fp8(x, weight), rmsnorm(x, weight), 128)


def test_same_bits_on_every_run():
    for columns, quantise, _ in quantisers(4096):
        x = torch.randn(513, columns, device="cuda").bfloat16()
        first = quantise(x, backend="cuda")
        for _ in range(5):
            again = quantise(x, backend="cuda")
            assert torch.equal(first[0].view(torch.uint8), again[0].view(torch.uint8))
            assert torch.equal(first[1], again[1])


def test_graph_replay_with_new_values():
    for columns, quantise, formula in quantisers(1024):
        x = torch.zeros(300, columns, dtype=BF16, device="cuda")
        quantise(x, backend="cuda")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = quantise(x, backend="cuda")
        for seed in range(3):
            values = random_normal((300, columns), BF16, seed=seed, scale=10.0**seed)
            x.copy_(values)
            graph.replay()
            check(got, quantise(values), formula(values), 128)


def test_runs_on_the_current_stream():
    for columns, quantise, formula in quantisers(2048):
        x = torch.randn(512, columns, device="cuda").bfloat16()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)
            y = x * 2
            got = quantise(y, backend="cuda")
        stream.synchronize()
        doubled = (x * 2).cpu()
        check(got, quantise(doubled), formula(doubled), 128)


def test_more_than_2_31_elements():
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of free GPU memory")
    columns = 4224
    rows = 2**31 // columns + 512
    for width, quantise, formula in quantisers(columns):
        x = torch.empty(rows, width, dtype=BF16, device="cuda").normal_()
        q, scale = quantise(x, backend="cuda")
        half = 2**30 // columns  # where elements of x pass 2^31 in SiLU
        for start in (0, half - 64, rows - 512 - 64, rows - 128):
            part = slice(start, start + 128)
            mine = x[part].cpu()
            check((q[part], scale[part]), quantise(mine), formula(mine), 128)
        del x, q, scale


def test_more_than_2_31_masked_elements():
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of free GPU memory")
    matrices, max_m, d = 300, 4096, 2048
    x = torch.empty(matrices, max_m, 2 * d, dtype=BF16, device="cuda").normal_()
    counts = torch.full((matrices,), 3, dtype=torch.int32, device="cuda")
    counts[-1] = max_m
    q, scale = silu_and_mul_quant_fp8(x, masked_m=counts, backend="cuda")
    for matrix, part in ((0, slice(0, 3)), (299, slice(0, 64)), (299, slice(4032, 4096))):
        mine = x[matrix, part].cpu()
        check((q[matrix, part], scale[matrix, part]), silu_and_mul_quant_fp8(mine), silu_and_mul(mine), 128)


@pytest.mark.gpu(count=2, min_arch=80)
def test_second_gpu_while_the_first_is_current():
    for columns, quantise, formula in quantisers(512):
        x = random_normal((64, columns), BF16)
        check(quantise(x.to("cuda:1"), backend="cuda"), quantise(x), formula(x), 128)
