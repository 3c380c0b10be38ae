"""How tensors of a call come to the launch of a Hopper product; the launch itself is a stand-in, so no GPU is needed."""

import ctypes
import weakref
from types import MappingProxyType

import pytest
import torch
from gemm_oracle import E4M3

from warploom import gemm
from warploom.core.backends import OPERATORS, Support
from warploom.gemm.backends.hopper import product
from warploom.gemm.backends.hopper.gemm_kernel import OPERAND_ORDER

BF16 = torch.bfloat16
M, N, K, GROUPS = 16, 256, 384, 2
ONE_BF16 = b"\x80\x3f"


class Launches:
    """Takes the place of `PreparedProduct`: keeps what was prepared and launched, and writes a 1 where outputs begin."""

    def __init__(self):
        self.readied = 0
        self.prepared = []
        self.addresses = []

    def __call__(self, tiles, kind, shape, operands):
        self.prepared.append((tiles, kind, shape, operands))
        return self

    def run(self, *addresses):
        self.addresses.append(dict(zip(OPERAND_ORDER, addresses, strict=True)))
        ctypes.memmove(self.addresses[-1]["out"], ONE_BF16, 2)


@pytest.fixture
def launches(monkeypatch):
    launches = Launches()
    ready = product._ready

    def counted(operands):
        launches.readied += 1
        return ready(operands)

    monkeypatch.setattr(product, "_ready", counted)
    monkeypatch.setattr(product, "PreparedProduct", launches)
    monkeypatch.setattr(product, "sm_count", lambda device: 132)
    monkeypatch.setattr(product.HopperProduct, "check", lambda self, problem: Support())
    forget_all()
    yield launches
    forget_all()


def forget_all():
    """No call stays bound to a launch of another test."""
    for operator in OPERATORS.values():
        operator.forget()


def fp8(*size):
    return torch.ones(*size).to(E4M3)


def half(*size):
    return torch.ones(*size, dtype=BF16)


def offsets():
    return torch.tensor([0, 5, M])


def new_out(*size):
    return torch.zeros(*size, dtype=BF16)


NO_ROWS = MappingProxyType({})


def of_rows():
    """Which token each row is."""
    return {"row_indices": torch.arange(M) % 8}


def tokens_of(rows):
    return 8 if rows else M


def mm():
    a, b, bias, out = half(M, K), half(N, K), half(N), new_out(M, N)
    gemm.mm_bf16(a, b.t(), bias, out, activation="silu", backend="hopper")
    return {"tokens": a, "weights": b, "bias": bias, "out": out}


def bmm():
    a, b, out = half(GROUPS, M, K), half(GROUPS, K, N), new_out(GROUPS, M, N)
    gemm.bmm_bf16(a, b, out, backend="hopper")
    return {"tokens": a, "weights": b, "out": out}


def scaled():
    a, b, out, scales = fp8(M, K), fp8(N, K), new_out(M, N), (torch.ones(M, 1), torch.ones(1, N))
    gemm.mm_fp8(a, b.t(), *scales, out=out, backend="hopper")
    return {"tokens": a, "weights": b, "out": out, "token_scales": scales[0], "weight_scales": scales[1]}


def scaled_batch():
    a, b, out, scales = fp8(GROUPS, M, K), fp8(GROUPS, N, K), new_out(GROUPS, M, N), (torch.ones(1), torch.ones(()))
    gemm.bmm_fp8(a, b.mT, *scales, out=out, backend="hopper")
    return {"tokens": a, "weights": b, "out": out, "token_scales": scales[0], "weight_scales": scales[1]}


def groupwise():
    a, b, out, scales = fp8(M, K), fp8(N, K), new_out(M, N), (torch.ones(3, M), torch.ones(3, 2))
    gemm.gemm_fp8_nt_groupwise(a, b, *scales, "MN", out=out, backend="hopper")
    return {"tokens": a, "weights": b, "out": out, "token_scales": scales[0], "weight_scales": scales[1]}


def grouped(rows=NO_ROWS):
    a, b, sizes, out = half(tokens_of(rows), K), half(GROUPS, N, K), offsets(), new_out(M, N)
    gemm.grouped_mm_bf16(a, b, sizes, out, **rows, backend="hopper")
    return {"tokens": a, "weights": b, "sizes": sizes, "out": out, **rows}


def grouped_new():
    a, b, sizes = half(M, K), half(GROUPS, N, K), offsets()
    out = gemm.grouped_mm_bf16(a, b, sizes, backend="hopper")
    return {"tokens": a, "weights": b, "sizes": sizes, "out": out}


def grouped_scaled(rows=NO_ROWS):
    a, b, sizes, out = fp8(tokens_of(rows), K), fp8(GROUPS, N, K), offsets(), new_out(M, N)
    scales = torch.ones(tokens_of(rows)), torch.ones(GROUPS)
    gemm.grouped_mm_fp8(a, b, sizes, out=out, a_scale=scales[0], b_scale=scales[1], **rows, backend="hopper")
    operands = {"tokens": a, "weights": b, "sizes": sizes, "out": out, **rows}
    return {**operands, "token_scales": scales[0], "weight_scales": scales[1]}


def grouped_groupwise(rows=NO_ROWS):
    a, b, sizes, out = fp8(tokens_of(rows), K), fp8(GROUPS, N, K), offsets(), new_out(M, N)
    scales = torch.ones(3, tokens_of(rows)), torch.ones(GROUPS, 3, 2)
    gemm.group_gemm_fp8_nt_groupwise(a, b, *scales, sizes, out=out, **rows, backend="hopper")
    operands = {"tokens": a, "weights": b, "sizes": sizes, "out": out, **rows}
    return {**operands, "token_scales": scales[0], "weight_scales": scales[1]}


def grouped_by_indices():
    return grouped(of_rows())


def grouped_scaled_by_indices():
    return grouped_scaled(of_rows())


def grouped_groupwise_by_indices():
    return grouped_groupwise(of_rows())


def masked():
    a, b, sizes, out = fp8(GROUPS, M, K), fp8(GROUPS, N, K), torch.tensor([3, 0]), new_out(GROUPS, M, N)
    scales = torch.ones(GROUPS, M, 3), torch.ones(GROUPS, 2, 3)
    gemm.batch_gemm_fp8_nt_groupwise_masked(a, b, *scales, sizes, 4, out=out, backend="hopper")
    operands = {"tokens": a, "weights": b, "sizes": sizes, "out": out}
    return {**operands, "token_scales": scales[0], "weight_scales": scales[1]}


def segment():
    x, weights, sizes, indices = half(M, K), half(3, K, N), offsets(), torch.tensor([2, 0])
    wrapper = gemm.SegmentGEMMWrapper(backend="hopper")
    out = wrapper.run(x, weights, 2, False, seg_indptr=sizes, weight_indices=indices)
    return {"tokens": x, "weights": weights, "sizes": sizes, "weight_indices": indices, "out": out}


CALLS = [
    mm,
    bmm,
    scaled,
    scaled_batch,
    groupwise,
    grouped,
    grouped_new,
    grouped_scaled,
    grouped_groupwise,
    grouped_by_indices,
    grouped_scaled_by_indices,
    grouped_groupwise_by_indices,
    masked,
    segment,
]


@pytest.mark.parametrize("call", CALLS)
def test_each_tensor_comes_to_its_place(launches, call):
    operands = [call() for _ in range(3)]  # all kept, so that none lies where another lay
    for given, launched in zip(operands, launches.addresses, strict=True):
        expected = {name: given[name].data_ptr() if name in given else 0 for name in OPERAND_ORDER}
        assert launched == expected
        assert given["out"].flatten()[0] == 1
    assert len(launches.prepared) == launches.readied == 1


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (mm, (BF16, BF16, "UNIFORM", "NONE", "SILU", True, False)),
        (bmm, (BF16, BF16, "UNIFORM", "NONE", "NONE", False, True)),
        (scaled, (E4M3, BF16, "UNIFORM", "AT_END", "NONE", False, False)),
        (groupwise, (E4M3, BF16, "UNIFORM", "OF_BLOCKS", "NONE", False, False)),
        (grouped, (BF16, BF16, "OFFSETS", "NONE", "NONE", False, False)),
        (grouped_scaled, (E4M3, BF16, "OFFSETS", "AT_END", "NONE", False, False)),
        (masked, (E4M3, BF16, "COUNTS", "OF_BLOCKS", "NONE", False, False)),
        (segment, (BF16, BF16, "OFFSETS", "NONE", "NONE", False, True)),
    ],
)
def test_the_kernel_is_the_one_of_the_product(launches, call, kind):
    call()
    made = launches.prepared[0][1]
    names = made.grouping.name, made.scaling.name, made.activation.name
    assert (made.dtype, made.out_dtype, *names, made.has_bias, made.weights_turned) == kind


@pytest.mark.parametrize("what", ["tokens", "weights", "bias", "out"])
def test_what_tma_does_not_take_is_copied(launches, what):
    odd = {name: 1 if name == what else 0 for name in ("tokens", "weights", "bias", "out")}
    for _ in range(2):  # the first call binds
        a, b = half(M, K + odd["tokens"])[:, :K], half(N, K + odd["weights"])[:, :K]
        bias = half(N, 1 + odd["bias"])[:, 0]
        out = new_out(M, N + odd["out"])[:, :N]
        gemm.mm_bf16(a, b.t(), bias, out, backend="hopper")
        launched = launches.addresses[-1]
        for name, tensor in {"tokens": a, "weights": b, "bias": bias, "out": out}.items():
            assert (launched[name] == tensor.data_ptr()) == (name != what)
        assert out[0, 0] == 1
    assert (len(launches.prepared), launches.readied) == (1, 3)  # once to bind, and by each call


@pytest.mark.parametrize("tokens_each", [64, 65])
def test_many_tokens_are_gathered_by_a_pass(launches, tokens_each):
    rows = GROUPS * tokens_each
    a, b, sizes = fp8(8, K), fp8(GROUPS, N, K), torch.tensor([0, tokens_each, rows])
    indices, scales = torch.arange(rows) % 8, (torch.ones(8, 3), torch.ones(GROUPS, 2, 3))
    options = {"scale_major_mode": "K", "row_indices": indices, "backend": "hopper"}
    for _ in range(2):
        out = gemm.group_gemm_fp8_nt_groupwise(a, b, *scales, sizes, **options)
        launched, is_few = launches.addresses[-1], tokens_each <= 64
        assert (launched["row_indices"] == indices.data_ptr()) == is_few
        assert (launched["tokens"] == a.data_ptr()) == is_few
        assert (launched["token_scales"] == scales[0].data_ptr()) == is_few
        assert launched["out"] == out.data_ptr()
    prepared = launches.prepared[0][3]
    assert prepared.tokens.shape == ((1, 8, K) if is_few else (1, rows, K))
    assert launches.prepared[0][2].gathers == launches.prepared[0][1].gathers == is_few


def test_alignment_is_seen(launches):
    memory, b = half(M * K + 8), half(N, K)
    for shift in (0, 1, 8):
        a = memory[shift : shift + M * K].view(M, K)
        gemm.mm_bf16(a, b.t(), backend="hopper")
        assert (launches.addresses[-1]["tokens"] == a.data_ptr()) == (shift != 1)
    assert len(launches.prepared) == 2


def test_one_matrix_for_all_is_not_copied(launches):
    a, b = half(GROUPS, M, K), half(1, N, K)
    gemm.bmm_bf16(a, b.expand(GROUPS, N, K).mT, backend="hopper")
    assert launches.addresses[0]["weights"] == b.data_ptr()
    assert launches.prepared[0][3].weights.shape == (1, N, K)


def test_products_without_elements_launch_nothing(launches):
    assert gemm.mm_bf16(half(0, K), half(K, N), backend="hopper").shape == (0, N)
    assert (
        gemm.grouped_mm_bf16(half(0, K), half(2, N, K), torch.zeros(3, dtype=torch.int32), backend="hopper").numel()
        == 0
    )
    assert launches.prepared == []


@pytest.mark.parametrize("odd", [0, 1])
def test_what_is_kept_of_a_call_holds_no_tensors(launches, odd):
    a, b, out = half(M, K + odd)[:, :K], half(K, N), new_out(M, N)
    gemm.mm_bf16(a, b, out=out, backend="hopper")
    kept = [weakref.ref(tensor) for tensor in (a, b, out)]
    launches.prepared.clear()
    del a, b, out
    assert [tensor() for tensor in kept] == [None] * 3
