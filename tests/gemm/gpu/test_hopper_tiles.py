"""Every tiling that the Hopper kernel has, in every form of product, against float64."""

import pytest
import torch
from gemm_oracle import E4M3, assert_product, random_fp8, random_scales

from warploom.core.testing import indptr_of, poison_like, random_normal
from warploom.gemm.backends.hopper.gemm_kernel import Grouping, Operands, Scaling
from warploom.gemm.backends.hopper.product import Product, prepare_product, product_shape
from warploom.gemm.backends.hopper.tile_choice import candidate_tiles
from warploom.gemm.backends.hopper.tiles import ProductShape, deepest

pytestmark = [pytest.mark.gpu(min_arch=90)]

BF16 = torch.bfloat16
M, N, K = 200, 392, 464  # no multiple of a tile, nor of a span
TOKENS = 90  # that rows are gathered from
SIZES = [0, 1, 70, 0, 129]  # of groups, together M


def kind(itemsize, has_blocks=False, shares_scales=False, weights_turned=False, gathers=False):
    return ProductShape(1, M, N, K, itemsize, has_blocks, shares_scales, weights_turned, gathers)


def all_tiles(shape):
    """Those that products choose from, and of the larger ones pairs of blocks that share tokens."""
    found = list(candidate_tiles(shape, sms=132))
    paired = (deepest(tiles._replace(cluster=2), shape) for tiles in found)
    return [*found, *(tiles for tiles in paired if tiles is not None)]


def labelled(*kinds):
    pairs = [(shape, tiles) for shape in kinds for tiles in all_tiles(shape)]
    return pytest.mark.parametrize(("shape", "tiles"), pairs, ids=lambda x: str(x) if hasattr(x, "stages") else "")


def operand(*size, itemsize, seed):
    if itemsize == 1:
        return random_fp8(size, E4M3, seed).cuda()
    return random_normal(size, BF16, seed=seed, device="cuda")


def run(tiles, *product, **options):
    """Products whose operands are taken as they are."""
    product = Product(*product, **options)
    ready, prepared = prepare_product(product, tiles)
    assert ready.addresses() == product.operands.addresses()
    prepared.run(*ready.addresses())


def blocks_of(size, block):
    return -(-size // block)


@labelled(kind(2), kind(1), kind(2, weights_turned=True))
def test_single(shape, tiles):
    a, b = operand(1, M, K, itemsize=shape.itemsize, seed=0), operand(1, N, K, itemsize=shape.itemsize, seed=1)
    b = b.mT.contiguous().mT if shape.weights_turned else b
    out = poison_like(torch.empty(1, M, N, dtype=BF16, device="cuda"))
    run(tiles, Operands(out, a, b, 1), M)
    assert_product(out[0], a[0], b[0])


@labelled(kind(1, True, True), kind(1, True, False))
def test_blocks(shape, tiles):
    rows = 128 if shape.shares_scales else 1
    a, b = operand(1, M, K, itemsize=1, seed=0), operand(1, N, K, itemsize=1, seed=1)
    a_scale = random_scales((1, M, blocks_of(K, 128)), 2).cuda()
    b_scale = random_scales((1, blocks_of(N, rows), blocks_of(K, 128)), 3).cuda()
    out = poison_like(torch.empty(1, M, N, dtype=BF16, device="cuda"))
    operands = Operands(out, a, b, 1, token_scales=a_scale, weight_scales=b_scale, granularity=(1, rows, 128))
    assert product_shape(operands, M, Scaling.OF_BLOCKS, False).shares_scales == shape.shares_scales
    run(tiles, operands, M, scaling=Scaling.OF_BLOCKS)
    assert_product(out[0], a[0], b[0], a_scale[0], b_scale[0], (1, rows, 128))


@labelled(kind(2), kind(2, weights_turned=True))
def test_groups(shape, tiles):
    a, b = operand(1, M, K, itemsize=2, seed=0), operand(len(SIZES), N, K, itemsize=2, seed=1)
    b = b.mT.contiguous().mT if shape.weights_turned else b
    offsets = indptr_of(SIZES, "cuda")
    out = poison_like(torch.empty(1, M, N, dtype=BF16, device="cuda"))
    run(tiles, Operands(out, a, b, len(SIZES), sizes=offsets), 40, Grouping.OFFSETS)
    for group, (start, size) in enumerate(zip(offsets.tolist(), SIZES, strict=False)):
        rows = slice(start, start + size)
        assert_product(out[0, rows], a[0, rows], b[group])


@labelled(kind(2, gathers=True), kind(2, weights_turned=True, gathers=True))
def test_gathered_tokens(shape, tiles):
    a, b = operand(1, TOKENS, K, itemsize=2, seed=0), operand(len(SIZES), N, K, itemsize=2, seed=1)
    b = b.mT.contiguous().mT if shape.weights_turned else b
    offsets, indices = indptr_of(SIZES, "cuda"), torch.randint(TOKENS, (M,), device="cuda")
    out = poison_like(torch.empty(1, M, N, dtype=BF16, device="cuda"))
    operands = Operands(out, a, b, len(SIZES), sizes=offsets, row_indices=indices)
    assert product_shape(operands, 40, Scaling.NONE, shape.weights_turned).gathers
    run(tiles, operands, 40, Grouping.OFFSETS)
    for group, (start, size) in enumerate(zip(offsets.tolist(), SIZES, strict=False)):
        rows = slice(start, start + size)
        assert_product(out[0, rows], a[0, indices[rows]], b[group])


@labelled(kind(1, True, True, gathers=True), kind(1, True, False, gathers=True))
def test_gathered_tokens_of_blocks(shape, tiles):
    rows_each = 128 if shape.shares_scales else 1
    a, b = operand(1, TOKENS, K, itemsize=1, seed=0), operand(len(SIZES), N, K, itemsize=1, seed=1)
    a_scale = random_scales((1, TOKENS, blocks_of(K, 128)), 2).cuda()
    b_scale = random_scales((len(SIZES), blocks_of(N, rows_each), blocks_of(K, 128)), 3).cuda()
    offsets, indices = indptr_of(SIZES, "cuda"), torch.randint(TOKENS, (M,), device="cuda", dtype=torch.int32)
    out = poison_like(torch.empty(1, M, N, dtype=BF16, device="cuda"))
    granularity = 1, rows_each, 128
    operands = Operands(out, a, b, len(SIZES), None, a_scale, b_scale, granularity, sizes=offsets, row_indices=indices)
    run(tiles, operands, 40, Grouping.OFFSETS, Scaling.OF_BLOCKS)
    tokens = a[0].view(torch.uint8)[indices].view(E4M3)
    for group, (start, size) in enumerate(zip(offsets.tolist(), SIZES, strict=False)):
        rows = slice(start, start + size)
        scales = a_scale[0, indices[rows]], b_scale[group]
        assert_product(out[0, rows], tokens[rows], b[group], *scales, granularity)


@labelled(kind(1, True, True))
def test_counts_of_blocks(shape, tiles):
    counts, most = [0, 1, 70, 3, 129], 150
    a, b = operand(5, most, K, itemsize=1, seed=0), operand(5, N, K, itemsize=1, seed=1)
    a_scale = random_scales((5, most, blocks_of(K, 128)), 2).cuda()
    b_scale = random_scales((5, blocks_of(N, 128), blocks_of(K, 128)), 3).cuda()
    out = poison_like(torch.empty(5, most, N, dtype=BF16, device="cuda"))
    sizes = torch.tensor(counts, device="cuda")
    operands = Operands(
        out, a, b, 5, token_scales=a_scale, weight_scales=b_scale, granularity=(1, 128, 128), sizes=sizes
    )
    run(tiles, operands, 40, Grouping.COUNTS, Scaling.OF_BLOCKS)
    for group, count in enumerate(counts):
        arguments = a[group, :count], b[group], a_scale[group, :count], b_scale[group], (1, 128, 128)
        assert_product(out[group, :count], *arguments)
        assert out[group, count:].isnan().all()
