"""Every operator inside ``torch.compile(fullgraph=True)``, and one in ``torch.export``."""

import pytest
import torch
from gemm_oracle import E4M3, random_fp8

from warploom import gemm
from warploom.core.testing import random_normal

BF16 = torch.bfloat16


def half(*shape):
    return random_normal(shape, BF16, seed=len(shape))


def masked_silu(x, counts):
    return gemm.silu_and_mul_quant_fp8(x, masked_m=counts)


def cast_silu(x, scale):
    return gemm.silu_and_mul_quant_fp8(x, None, scale=scale)


def rmsnorm_of_sum(x, weight, residual, scale):
    """The residual, which is updated, is a copy: the test calls twice with the same."""
    residual = residual.clone()
    return *gemm.rmsnorm_quant_fp8(x, weight, residual, group_size=None, scale=scale), residual


def inputs(rows):
    """Arguments of every operator, for `rows` rows."""
    offsets = torch.tensor([0, 1, rows], dtype=torch.int32)
    a, b, b3 = random_fp8((rows, 256)), random_fp8((16, 256)), random_fp8((2, 16, 256))
    a3, ones, full = random_fp8((2, rows, 256)), torch.ones, torch.full((2,), rows)
    lora, tokens = gemm.SegmentGEMMWrapper(), torch.arange(rows).flip(0)

    def gathered(a, b, m_indptr, row_indices):
        return gemm.grouped_mm_bf16(a, b, m_indptr, row_indices=row_indices)

    def segments(x, weights, lengths):
        return lora.run(x, weights, 2, True, seg_lens=lengths)

    return {
        "mm_bf16": (gemm.mm_bf16, half(rows, 8), half(8, 16), half(16)),
        "bmm_bf16": (gemm.bmm_bf16, half(2, rows, 8), half(2, 8, 16)),
        "mm_fp8": (gemm.mm_fp8, a, b.t(), ones(rows), ones(1)),
        "bmm_fp8": (gemm.bmm_fp8, a3, b3.mT, ones(1), ones(1)),
        "groupwise": (gemm.gemm_fp8_nt_groupwise, a, b, ones(2, rows), ones(2, 1), "MN"),
        "blockscale": (gemm.fp8_blockscale_gemm_sm90, half(rows, 256), half(16, 256)),
        "grouped_bf16": (gemm.grouped_mm_bf16, half(rows, 8), half(2, 16, 8), offsets),
        "grouped_gathered": (gathered, half(2, 8), half(2, 16, 8), offsets, tokens),
        "grouped_fp8": (gemm.grouped_mm_fp8, a, b3, offsets),
        "grouped_groupwise": (gemm.group_gemm_fp8_nt_groupwise, a, b3, ones(2, rows), ones(2, 2, 1), offsets),
        "masked": (gemm.batch_gemm_fp8_nt_groupwise_masked, a3, b3, ones(2, rows, 2), ones(2, 1, 2), full, 2),
        "segment": (segments, half(rows, 8), half(2, 16, 8), torch.tensor([1, rows - 1])),
        "token_groups": (gemm.per_token_group_quant_fp8, half(rows, 256), 128, 1e-10, E4M3, True, True),
        "blocks": (gemm.per_block_quant_fp8, half(rows, 256)),
        "tensor": (gemm.per_tensor_quant_fp8, half(rows, 8)),
        "cast": (gemm.per_tensor_quant_fp8, half(rows, 8), torch.ones(1)),
        "silu_groups": (gemm.silu_and_mul_quant_fp8, half(rows, 512), 128, 1e-10, E4M3, True, True),
        "silu_masked": (masked_silu, half(2, rows, 512), full),
        "silu_cast": (cast_silu, half(rows, 512), ones(1)),
        "rmsnorm_groups": (gemm.rmsnorm_quant_fp8, half(rows, 256), half(256)),
        "rmsnorm_rows": (gemm.rmsnorm_quant_fp8, half(rows, 256), half(256), None, 1e-6, -1),
        "rmsnorm_residual": (rmsnorm_of_sum, half(rows, 256), half(256), half(rows, 256), ones(1)),
    }


def flat(result):
    return [x.float() for x in (result if isinstance(result, tuple) else (result,))]


@pytest.mark.parametrize("name", inputs(2))
def test_compiles_in_one_graph_for_any_number_of_rows(name):
    function, *_ = inputs(2)[name]

    def program(*arguments):
        return [x.float() * 2 for x in flat(function(*arguments))]

    torch.compiler.reset()
    compiled = torch.compile(program, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (4, 6):
        _, *arguments = inputs(rows)[name]
        for got, want in zip(compiled(*arguments), program(*arguments), strict=True):
            assert got.stride() == want.stride()
            torch.testing.assert_close(got, want)


def test_compiled_program_writes_into_the_callers_buffer():
    def program(out, a, b):
        gemm.mm_bf16(a, b, out=out)
        return out.sum()

    a, b = half(3, 8), half(8, 4)
    out = torch.zeros(3, 4, dtype=BF16)
    torch.compiler.reset()
    torch.compile(program, fullgraph=True, backend="aot_eager")(out, a, b)
    torch.testing.assert_close(out, gemm.mm_bf16(a, b))


def test_exports_as_nodes():
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("weight", half(16, 256))

        def forward(self, x):
            return gemm.fp8_blockscale_gemm_sm90(x, self.weight)

    x = half(3, 256)
    exported = torch.export.export(Layer(), (x,))
    names = {str(node.target) for node in exported.graph.nodes}
    assert {"warploom.per_token_group_quant_fp8.default", "warploom.gemm_fp8_nt_groupwise.default"} <= names
    torch.testing.assert_close(exported.module()(x), Layer()(x))
