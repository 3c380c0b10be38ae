"""Random products of every operator by the Hopper kernel, against float64: shapes, strides, groups, scales."""

import random
from functools import partial

import pytest
import torch
from gemm_oracle import ADVERSARIAL_SCALES, E4M3, assert_product, random_fp8

from warploom import gemm
from warploom.core.testing import indptr_of, poison_like, random_normal, random_strided

pytestmark = [pytest.mark.gpu(min_arch=90)]

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
SEEDS = range(24)
PROBLEMS = 12  # of each seed
TOKENS = (1, 2, 3, 7, 8, 9, 16, 17, 31, 33, 63, 64, 65, 100, 127, 128, 129, 200, 257, 300)


class Draw:
    """Random sizes and operands of one problem."""

    def __init__(self, seed, number):
        self.random = random.Random(seed * 1000 + number)
        self.seed = self.random.randrange(1 << 30)

    def tokens(self):
        return self.random.choice(TOKENS)

    def size(self, most, multiple=1):
        return max(multiple, self.random.randrange(1, most) // multiple * multiple)

    def pick(self, *values):
        return self.random.choice(values)

    def half(self, *size, dtype=BF16):
        self.seed += 1
        if self.random.random() < 0.3:
            return random_strided(size, dtype, device="cuda", padding=self.pick(1, 8), seed=self.seed)
        return random_normal(size, dtype, seed=self.seed, device="cuda")

    def fp8(self, *size):
        self.seed += 1
        if self.random.random() < 0.3:
            return random_strided(size, E4M3, device="cuda", padding=self.pick(1, 16), seed=self.seed)
        return random_fp8(size, E4M3, self.seed).cuda()

    def scale(self, *size):
        """Around one, or of wild magnitudes; in either storage order."""
        generator = torch.Generator().manual_seed(self.seed + 7)
        if self.random.random() < 0.2:
            values = torch.tensor([scale for scale in ADVERSARIAL_SCALES if scale < 1e20])
            scale = values[torch.randint(len(values), size, generator=generator)]
        else:
            scale = torch.rand(size, generator=generator) + 0.5
        scale = scale.cuda()
        return scale if self.random.random() < 0.5 else scale.mT.contiguous().mT

    def lengths(self, groups, most):
        lengths = [self.random.randrange(most) if self.random.random() < 0.7 else 0 for _ in range(groups)]
        return lengths if sum(lengths) else [1] * groups


def problems(seed):
    return [Draw(seed, number) for number in range(PROBLEMS)]


def empty(*size, dtype=BF16):
    return poison_like(torch.empty(size, dtype=dtype, device="cuda"))


@pytest.mark.parametrize("seed", SEEDS)
def test_mm_bf16(seed):
    for draw in problems(seed):
        m, n, k, dtype = draw.tokens(), draw.size(700), draw.size(1500), draw.pick(BF16, FP16)
        a = draw.half(m, k, dtype=dtype)
        b = draw.half(n, k, dtype=dtype).t() if draw.pick(True, False) else draw.half(k, n, dtype=dtype)
        bias = draw.half(n, dtype=draw.pick(BF16, FP16, FP32)).contiguous() if draw.pick(True, False) else None
        out = gemm.mm_bf16(a, b, bias, out_dtype=draw.pick(BF16, FP16, FP32), backend="hopper")
        assert_product(out, a, b.t(), bias=bias)


@pytest.mark.parametrize("seed", SEEDS)
def test_bmm(seed):
    for draw in problems(seed):
        batch, m, n, k = draw.size(9), draw.tokens(), draw.size(400), draw.size(600)
        a, b = draw.half(batch, m, k), draw.half(batch, n, k).mT
        out = gemm.bmm_bf16(a, b, backend="hopper")
        one, x, w = torch.tensor([0.5]).cuda(), draw.fp8(batch, m, k), draw.fp8(batch, n, k)
        scaled = gemm.bmm_fp8(x, w.mT, one, one, FP32, backend="hopper")
        for i in range(batch):
            assert_product(out[i], a[i], b[i].t())
            assert_product(scaled[i] * 4, x[i], w[i])


@pytest.mark.parametrize("seed", SEEDS)
def test_mm_fp8(seed):
    for draw in problems(seed):
        m, n, k = draw.tokens(), draw.size(700), draw.size(3000)
        a, b = draw.fp8(m, k), draw.fp8(n, k)
        a_scale = draw.scale(m if draw.pick(True, False) else 1, 1)
        b_scale = draw.scale(n if draw.pick(True, False) else 1, 1)
        bias = draw.half(n).contiguous() if draw.pick(True, False) else None
        dtype = draw.pick(BF16, FP32)
        out = gemm.mm_fp8(a, b.t(), a_scale, b_scale.t(), bias, out_dtype=dtype, backend="hopper")
        scales = a_scale.expand(m, 1), b_scale.expand(n, 1)
        assert_product(out, a, b, *scales, (1, 1, k), bias=bias)


@pytest.mark.parametrize("seed", SEEDS)
def test_groupwise(seed):
    for draw in problems(seed):
        m, n, k = draw.tokens(), draw.size(700), draw.size(3000)
        gm, gn, gk = granularity = draw.pick((1, 128, 128), (1, 128, 128), (1, 1, 128), (128, 128, 128), (4, 64, 256))
        a, b = draw.fp8(m, k), draw.fp8(n, k)
        a_scale, b_scale = draw.scale(-(-m // gm), -(-k // gk)), draw.scale(-(-n // gn), -(-k // gk))
        out = gemm.gemm_fp8_nt_groupwise(
            a, b, a_scale, b_scale, None, granularity, out_dtype=draw.pick(BF16, FP32), backend="hopper"
        )
        assert_product(out, a, b, a_scale, b_scale, granularity)


@pytest.mark.parametrize("seed", SEEDS)
def test_groups(seed):
    for draw in problems(seed):
        groups, n, k = draw.size(40), draw.size(300, 8), draw.size(600, 8)
        lengths = draw.lengths(groups, draw.pick(4, 40, 300))
        rows, wide = sum(lengths), draw.pick(torch.int32, torch.int64)
        offsets = indptr_of(lengths, "cuda").to(wide)
        a = draw.half(rows + draw.pick(0, 5), k)
        b = draw.half(groups, n, k) if draw.pick(True, False) else draw.half(groups, k, n).mT
        out = gemm.grouped_mm_bf16(a, b, offsets, empty(a.shape[0], n), backend="hopper")
        x, w, x_scale, w_scale = draw.fp8(rows, k), draw.fp8(groups, n, k), draw.scale(rows, 1), draw.scale(groups, n)
        by_row = gemm.grouped_mm_fp8(
            x, w, offsets, out=empty(rows, n), a_scale=x_scale, b_scale=w_scale.contiguous(), backend="hopper"
        )
        start = 0
        for group, length in enumerate(lengths):
            part = slice(start, start + length)
            assert_product(out[part], a[part], b[group])
            assert_product(by_row[part], x[part], w[group], x_scale[part], w_scale[group].unsqueeze(1), (1, 1, k))
            start += length
        assert out[rows:].isnan().all()  # not the groups': left alone


@pytest.mark.parametrize("seed", SEEDS)
def test_groups_with_blocks(seed):
    for draw in problems(seed):
        groups, n, k = draw.size(20), draw.size(500, 8), draw.size(1500, 16)
        lengths = draw.lengths(groups, draw.pick(4, 40, 300))
        rows, blocks = sum(lengths), -(-k // 128)
        a, b = draw.fp8(rows, k), draw.fp8(groups, n, k)
        a_scale, b_scale = draw.scale(rows, blocks), draw.scale(groups, -(-n // 128), blocks)
        out = gemm.group_gemm_fp8_nt_groupwise(
            a, b, a_scale, b_scale, indptr_of(lengths, "cuda"), scale_major_mode=None, backend="hopper"
        )
        most = max(lengths)
        masked = torch.tensor(lengths, device="cuda", dtype=draw.pick(torch.int32, torch.int64))
        x, x_scale = draw.fp8(groups, most, k), draw.scale(groups, most, blocks)
        result = empty(groups, most, n)
        gemm.batch_gemm_fp8_nt_groupwise_masked(
            x, b, x_scale, b_scale, masked, draw.pick(1, most), out=result, backend="hopper"
        )
        start = 0
        for group, length in enumerate(lengths):
            part = slice(start, start + length)
            assert_product(out[part], a[part], b[group], a_scale[part], b_scale[group], (1, 128, 128))
            own = x[group, :length], b[group], x_scale[group, :length], b_scale[group]
            assert_product(result[group, :length], *own, (1, 128, 128))
            assert result[group, length:].isnan().all()
            start += length


@pytest.mark.parametrize("seed", SEEDS)
def test_rows_that_indices_name(seed):
    for draw in problems(seed):
        groups, n, k, tokens = draw.size(30), draw.size(400, 8), draw.size(1500, 16), draw.size(200)
        lengths = draw.lengths(groups, draw.pick(4, 40, 300))
        rows, blocks = sum(lengths), -(-k // 128)
        offsets = indptr_of(lengths, "cuda")
        indices = torch.randint(tokens, (rows,), device="cuda", dtype=draw.pick(torch.int32, torch.int64))
        a, b = draw.half(tokens, k), draw.half(groups, n, k)
        out = gemm.grouped_mm_bf16(a, b, offsets, empty(rows, n), row_indices=indices, backend="hopper")
        x, w, x_scale, w_scale = (
            draw.fp8(tokens, k),
            draw.fp8(groups, n, k),
            draw.scale(tokens, 1),
            draw.scale(groups, n),
        )
        scales = {"a_scale": x_scale, "b_scale": w_scale.contiguous()}
        by_row = gemm.grouped_mm_fp8(x, w, offsets, out=empty(rows, n), row_indices=indices, backend="hopper", **scales)
        block_scales = draw.scale(tokens, blocks), draw.scale(groups, -(-n // 128), blocks)
        by_block = gemm.group_gemm_fp8_nt_groupwise(
            x, w, *block_scales, offsets, scale_major_mode=None, row_indices=indices, backend="hopper"
        )
        start = 0
        for group, length in enumerate(lengths):
            part = slice(start, start + length)
            at = indices[part].long()
            assert_product(out[part], a[at], b[group])
            at_row = (
                x.view(torch.uint8)[at].view(x.dtype),
                w[group],
                x_scale[at],
                w_scale[group].unsqueeze(1),
                (1, 1, k),
            )
            assert_product(by_row[part], *at_row)
            scaled = *at_row[:2], block_scales[0][at], block_scales[1][group], (1, 128, 128)
            assert_product(by_block[part], *scaled)
            start += length


@pytest.mark.parametrize("seed", SEEDS)
def test_segments(seed):
    for draw in problems(seed):
        batch, d_in, d_out, number = draw.size(70), draw.size(500, 8), draw.size(300, 8), draw.size(30)
        lengths = draw.lengths(batch, draw.pick(3, 30))
        x, by_column = draw.half(sum(lengths), d_in), draw.pick(True, False)
        weights = draw.half(number, d_out, d_in) if by_column else draw.half(number, d_in, d_out)
        indices = torch.randint(number, (batch,), device="cuda", dtype=draw.pick(torch.int32, torch.int64))
        out = gemm.SegmentGEMMWrapper(backend="hopper").run(
            x, weights, batch, by_column, seg_lens=torch.tensor(lengths, device="cuda"), weight_indices=indices
        )
        start = 0
        for length, index in zip(lengths, indices.tolist(), strict=True):
            part = slice(start, start + length)
            assert_product(out[part], x[part], weights[index] if by_column else weights[index].t())
            start += length


@pytest.mark.parametrize("groups", [1, 2, 512, 1024])
def test_many_groups_most_of_them_empty(groups):
    lengths = [0] * groups
    lengths[groups // 2], lengths[-1] = lengths[groups // 2] + 5, lengths[-1] + 1
    a, b = random_normal((sum(lengths), 64), BF16, device="cuda"), random_normal((groups, 16, 64), BF16, device="cuda")
    out = gemm.grouped_mm_bf16(a, b, indptr_of(lengths, "cuda"), backend="hopper")
    start = 0
    for group, length in enumerate(lengths):
        assert_product(out[start : start + length], a[start : start + length], b[group])
        start += length


def test_weights_of_all_groups_may_be_one():
    a, b = random_normal((50, 128), BF16, device="cuda"), random_normal((1, 64, 128), BF16, device="cuda")
    out = gemm.grouped_mm_bf16(a, b.expand(3, 64, 128), indptr_of([20, 0, 30], "cuda"), backend="hopper")
    assert_product(out, a, b[0])


@pytest.mark.parametrize("m", [1, 16, 100, 300])
@pytest.mark.parametrize("where", ["a", "a_scale", "b_scale"])
def test_nan_stays_in_its_place(m, where):
    a, b = random_fp8((m, 512)).cuda(), random_fp8((256, 512), seed=1).cuda()
    a_scale, b_scale = torch.ones(m, 4, device="cuda"), torch.ones(2, 4, device="cuda")
    if where == "a":
        a.view(torch.uint8)[m // 2, 200] = 0x7F
    elif where == "a_scale":
        a_scale[m // 2, 1] = float("nan")
    else:
        b_scale[1, 3] = float("nan")
    out = gemm.gemm_fp8_nt_groupwise(a, b, a_scale, b_scale, backend="hopper")
    expected = torch.zeros(m, 256, dtype=torch.bool, device="cuda")
    expected[m // 2 if where != "b_scale" else slice(None), slice(128, None) if where == "b_scale" else slice(None)] = (
        True
    )
    assert torch.equal(out.isnan(), expected)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
@pytest.mark.parametrize("m", [5, 200])
def test_activations_and_fp8_outputs(activation, m):
    a, b = random_normal((m, 256), BF16, device="cuda"), random_normal((128, 256), BF16, seed=1, device="cuda").t()
    bias = random_normal((128,), FP32, seed=2, device="cuda")
    exact = a.double() @ b.double() + bias.double()
    exact = getattr(torch.nn.functional, activation)(exact)
    out = gemm.mm_bf16(a, b, bias, out_dtype=FP32, activation=activation, backend="hopper")
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)
    small = gemm.mm_bf16(a, b, bias, out_dtype=E4M3, activation=activation, backend="hopper")
    expected = gemm.mm_bf16(a, b, bias, out_dtype=E4M3, activation=activation, backend="reference")
    assert (small.view(torch.uint8) != expected.view(torch.uint8)).float().mean() < 1e-3  # ties of fp8
    torch.testing.assert_close(small.float(), exact.float().clamp(-448, 448), rtol=2**-4 + 1e-4, atol=2**-10 + 1e-4)


@pytest.mark.parametrize("m", [1, 64, 200])
def test_same_bits_again(m):
    a, b = random_normal((m, 4096), BF16, device="cuda"), random_normal((1000, 4096), BF16, seed=1, device="cuda").t()
    first = gemm.mm_bf16(a, b, backend="hopper")
    for _ in range(5):
        assert torch.equal(gemm.mm_bf16(a, b, backend="hopper"), first)


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("m", [1, 16, 64, 200])
def test_products_of_products(m, captured):
    """Each reads what the one before writes, and may start before that one has ended; tokens are others each time."""
    wide, narrow = 4104, 1032
    up = [random_normal((wide, narrow), BF16, seed=i, scale=narrow**-0.5, device="cuda").t() for i in range(6)]
    down = [random_normal((narrow, wide), BF16, seed=i + 6, scale=wide**-0.5, device="cuda").t() for i in range(6)]
    x, between, out = (empty(m, size) for size in (narrow, wide, narrow))

    def chain(after_each):
        out.copy_(x)
        for first, second in zip(up, down, strict=True):
            gemm.mm_bf16(out, first, out=between, backend="hopper")
            after_each()
            gemm.mm_bf16(between, second, out=out, backend="hopper")
            after_each()

    rounds = [random_normal((m, narrow), BF16, seed=20 + i, device="cuda") for i in range(10)]
    expected = []
    for values in rounds:
        x.copy_(values)
        chain(torch.cuda.synchronize)
        expected.append(out.clone())
    exact = rounds[0].double()
    for first, second in zip(up, down, strict=True):
        exact = exact @ first.double() @ second.double()
    torch.testing.assert_close(expected[0].double(), exact, rtol=0.05, atol=0.05)  # a dozen roundings to bfloat16
    run = partial(chain, lambda: None)
    if captured:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        run = graph.replay
    for values, wanted in zip(rounds, expected, strict=True):
        x.copy_(values)
        run()
        assert torch.equal(out, wanted)


def test_more_elements_than_an_int_counts():
    """Tokens, weights and outputs beyond 2**31 elements: what lies there is computed, and nothing else is touched."""
    m, n, k = 70_000, 64, 32_768
    a = torch.zeros(m, k, dtype=E4M3, device="cuda")
    a[-3:] = random_fp8((3, k)).cuda()
    b = random_fp8((n, k), seed=1).cuda()
    one = torch.ones(1, device="cuda")
    out = gemm.mm_fp8(a, b.t(), one, one, backend="hopper")
    assert_product(out[-3:], a[-3:], b)
    assert not out[:-3].any()
    del a, out
    groups = 2100
    weights = torch.zeros(groups // 4, 4096, 1024, dtype=E4M3, device="cuda")
    weights[-1] = random_fp8((4096, 1024)).cuda()
    x = random_fp8((6, 1024), seed=2).cuda()
    sizes = [1] * 5 + [0] * (groups // 4 - 6) + [1]
    out = gemm.grouped_mm_fp8(x, weights, indptr_of(sizes, "cuda"), backend="hopper")
    assert_product(out[5:], x[5:], weights[-1])
    assert not out[:5].any()
    del weights
    wide = gemm.mm_bf16(
        torch.ones(140_000, 8, dtype=BF16, device="cuda"),
        torch.ones(8, 16_384, dtype=BF16, device="cuda"),
        backend="hopper",
    )
    assert wide.numel() > 2**31
    assert (wide == 8).all()
