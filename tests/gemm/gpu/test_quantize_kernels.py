"""The quantiser kernels, to the bit against the reference on the CPU."""

import pytest
import torch

from warploom.core.errors import UnsupportedError
from warploom.core.testing import cases, poison_like, random_normal, random_strided
from warploom.gemm import per_block_quant_fp8, per_tensor_quant_fp8, per_token_group_quant_fp8

pytestmark = pytest.mark.gpu

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
FLOATS = (torch.bfloat16, torch.float16, torch.float32)
INF, NAN = float("inf"), float("nan")


def same(actual, expected):
    """Equal codes, and scales equal to the bit with NaN at the same places."""
    (q, scale), (expected_q, expected_scale) = actual, expected
    assert torch.equal(q.cpu().view(torch.uint8), expected_q.view(torch.uint8))
    torch.testing.assert_close(scale.cpu(), expected_scale, rtol=0, atol=0, equal_nan=True)


def compare(quantise, x, *arguments, **options):
    """`x` is on the CPU."""
    actual = quantise(x.cuda(), *arguments, backend="cuda", **options)
    same(actual, quantise(x, *arguments, backend="reference", **options))
    return actual


@pytest.mark.parametrize(
    *cases(
        shape=[(0, 128), (1, 128), (3, 136), (7, 7168), (129, 2048), (2, 5, 512), (70, 24)],
        group=[16, 32, 64, 128, 256, 512],
        dtype=FLOATS,
        out=[E4M3, E5M2],
        ue8m0=[False, True],
    )
)
def test_token_groups(case):
    x = random_normal(case.shape, case.dtype, seed=1, scale=3.0)
    compare(per_token_group_quant_fp8, x, case.group, dtype=case.out, scale_ue8m0=case.ue8m0)


@pytest.mark.parametrize(
    *cases(
        shape=[(0, 128), (1, 8), (128, 128), (130, 264), (257, 4096), (3, 200, 384)],
        dtype=FLOATS,
        out=[E4M3, E5M2],
        ue8m0=[False, True],
    )
)
def test_blocks(case):
    x = random_normal(case.shape, case.dtype, seed=1, scale=0.02)
    compare(per_block_quant_fp8, x, dtype=case.out, scale_ue8m0=case.ue8m0)


@pytest.mark.parametrize(*cases(shape=[(0,), (8,), (333, 1000), (2, 3, 4, 4096)], dtype=FLOATS, out=[E4M3, E5M2]))
def test_tensors(case):
    x = random_normal(case.shape, case.dtype, seed=1, scale=5.0)
    compare(per_tensor_quant_fp8, x, dtype=case.out)
    scale = torch.tensor([0.01])
    q, _ = per_tensor_quant_fp8(x.cuda(), scale.cuda(), dtype=case.out, backend="cuda")
    same((q, scale), per_tensor_quant_fp8(x, scale, dtype=case.out))


def awkward(dtype, seed):
    """Rows of every magnitude of the type: ties, signed zeros, subnormal numbers, infinities and NaN among them."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(-(2**31), 2**31 - 1, (257, 1024), generator=generator, dtype=torch.int64).to(torch.int32)
    x = bits.view(torch.float32).to(dtype)
    ties = (torch.randint(-3584, 3585, (257, 1024), generator=generator) / 8).to(dtype)
    x[::2] = ties[::2]
    x[::2, ::128] = 448.0  # an inverse of one keeps the ties
    x[4] = 0.0
    x[5] = torch.tensor([0.0, -0.0]).repeat(512).to(dtype)
    x[6, 7], x[8, 9], x[10, 500] = INF, -INF, NAN
    tiny = torch.finfo(dtype)
    x[12] = tiny.smallest_normal / 4
    x[14] = tiny.max
    return x


@pytest.mark.parametrize(*cases(dtype=FLOATS, out=[E4M3, E5M2], ue8m0=[False, True], seed=range(3)))
def test_awkward_values(case):
    x = awkward(case.dtype, case.seed)
    compare(per_token_group_quant_fp8, x, dtype=case.out, scale_ue8m0=case.ue8m0)
    finite = torch.where(x.isfinite(), x, 1.0)
    compare(per_token_group_quant_fp8, finite, 32, dtype=case.out, scale_ue8m0=case.ue8m0, eps=1e-30)
    compare(per_block_quant_fp8, x, dtype=case.out, scale_ue8m0=case.ue8m0)
    compare(per_block_quant_fp8, finite, dtype=case.out, scale_ue8m0=case.ue8m0)
    compare(per_tensor_quant_fp8, finite, dtype=case.out)
    compare(per_tensor_quant_fp8, x, dtype=case.out)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("out", [E4M3, E5M2], ids=str)
def test_every_16_bit_value(dtype, out):
    """All codes of the type with a scale of one: the conversion itself."""
    x = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(dtype)
    scale = torch.ones(1)
    q, _ = per_tensor_quant_fp8(x.cuda(), scale.cuda(), dtype=out, backend="cuda")
    same((q, scale), per_tensor_quant_fp8(x, scale, dtype=out))


@pytest.mark.parametrize(*cases(rows=[1, 4, 6, 131], aligned=[False, True], lead=[(), (3,)]))
def test_column_major_scales(case):
    x = random_normal((*case.lead, case.rows, 640), torch.bfloat16, seed=1)
    _, scale = compare(per_token_group_quant_fp8, x, column_major_scales=True, scale_tma_aligned=case.aligned)
    assert scale.stride()[-2:] == (1, -(-case.rows // 4) * 4 if case.aligned else case.rows)


def test_column_major_scales_of_blocks():
    compare(per_block_quant_fp8, random_normal((2, 300, 384), torch.bfloat16), column_major_scales=True)


def test_strided_inputs_and_own_outputs():
    x = random_strided((3, 40, 160), torch.bfloat16, seed=1, device="cuda", padding=16)
    assert x.data_ptr() % 16 == 0
    out = poison_like(torch.empty(3, 40, 160, dtype=E4M3, device="cuda"))
    out_scale = poison_like(torch.empty(3, 2, 80, device="cuda"))[:, :, ::2].mT
    got = per_token_group_quant_fp8(x, out=out, out_scale=out_scale, backend="cuda")
    assert got[0] is out
    same(got, per_token_group_quant_fp8(x.cpu()))


@pytest.mark.parametrize(
    ("make", "group", "reason"),
    [
        (lambda: torch.randn(4, 129, device="cuda"), 128, "columns a multiple of 4"),
        (lambda: torch.randn(4, 136, device="cuda")[:, 1:129], 128, "16-byte aligned"),
        (lambda: torch.randn(128, 4, device="cuda").t(), 128, "contiguous columns"),
        (lambda: torch.randn(4, 128, device="cuda"), 96, "has groups of 16, 32"),
    ],
)
def test_refuses_what_it_cannot_do_and_the_reference_does(make, group, reason):
    x = make()
    with pytest.raises(UnsupportedError, match=reason):
        per_token_group_quant_fp8(x, group, backend="cuda")
    same(per_token_group_quant_fp8(x, group, backend="reference"), per_token_group_quant_fp8(x.cpu(), group))


def test_reference_on_the_gpu_is_the_same_to_the_bit():
    x = awkward(torch.float32, 7)
    for quantise in (per_token_group_quant_fp8, per_block_quant_fp8, per_tensor_quant_fp8):
        same(quantise(x.cuda(), backend="reference"), quantise(x))


@pytest.mark.parametrize("quantise", [per_token_group_quant_fp8, per_block_quant_fp8, per_tensor_quant_fp8])
def test_graph_replay_with_new_values(quantise):
    x = torch.zeros(300, 1024, dtype=torch.bfloat16, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        q, scale = quantise(x, backend="cuda")
    for seed in range(3):
        values = random_normal((300, 1024), torch.bfloat16, seed=seed, scale=10.0**seed)
        x.copy_(values)
        graph.replay()
        same((q, scale), quantise(values))


def test_runs_on_the_current_stream():
    x = torch.randn(4096, 4096, device="cuda").bfloat16()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        y = x * 2
        q, scale = per_token_group_quant_fp8(y, backend="cuda")
    stream.synchronize()
    same((q, scale), per_token_group_quant_fp8((x * 2).cpu()))


@pytest.mark.parametrize("quantise", [per_token_group_quant_fp8, per_block_quant_fp8])
@pytest.mark.parametrize("column_major", [False, True])
def test_more_than_2_31_elements(quantise, column_major):
    rows, columns = 2**19 + 256, 4224  # 2.2e9 elements: 4.4 GB, and 2.2 GB of codes
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("needs 12 GiB of free GPU memory")
    x = torch.empty(rows, columns, dtype=torch.bfloat16, device="cuda").normal_()
    q, scale = quantise(x, column_major_scales=column_major, backend="cuda")
    row_blocks = rows if quantise is per_token_group_quant_fp8 else rows // 128
    assert scale.shape == (row_blocks, columns // 128)
    beyond = 2**31 // columns // 128 * 128
    for start in (0, beyond - 128, beyond, rows - 256):
        part = slice(start, start + 256)
        part_scale = part if quantise is per_token_group_quant_fp8 else slice(start // 128, start // 128 + 2)
        same((q[part], scale[part_scale]), quantise(x[part].cpu()))


def test_more_than_2_31_elements_of_a_tensor():
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("needs 12 GiB of free GPU memory")
    x = torch.empty(2**31 + 4096, dtype=torch.bfloat16, device="cuda").normal_()
    x[-3] = 1000.0
    q, scale = per_tensor_quant_fp8(x, backend="cuda")
    assert scale.item() == torch.tensor(1000.0).div(torch.tensor(448.0)).item()
    tail = x[-8192:].cpu()
    same((q[-8192:], scale), per_tensor_quant_fp8(tail))


@pytest.mark.gpu(count=2)
def test_second_gpu_while_the_first_is_current():
    x = random_normal((64, 512), torch.bfloat16)
    same(per_token_group_quant_fp8(x.to("cuda:1"), backend="cuda"), per_token_group_quant_fp8(x))
