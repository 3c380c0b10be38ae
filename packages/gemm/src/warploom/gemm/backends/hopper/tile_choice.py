"""Which tiles a product gets: those of the fewest cycles by a model of what blocks wait for, fitted to an H200.

A block takes the longer of copying and multiplying, and more for each tile. Nothing is faster than memory brings the
operands. Over a hundred products of 1 to 4096 tokens the choice was 0.9 % slower than the best of all tiles that were
tried; 6 % at most of 8-bit products, 15 % of 16-bit ones, whose mid-sized tiles copy faster than it thinks.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

from warploom.gemm.backends.hopper.tiles import (
    SPAN_BYTES,
    GemmTiles,
    ProductShape,
    deepest,
    shares_column_scale,
)
from warploom.gemm.scales import ceil_div

__all__ = ["CYCLES_PER_US", "Costs", "candidate_tiles", "choose_tiles", "cycles", "describe_choice"]


class Costs(NamedTuple):
    """What the model counts, in cycles of 1.8 GHz: fitted by ``python tools/tune/gemm_tiles.py fit``."""

    memory_bytes: float = 2588.0  # a cycle, of the GPU
    again: float = 0.1715  # of weights, that several tiles of tokens read, is read from memory again
    copied_bytes: float = 60.16  # a cycle, of an SM
    latency: float = 3553.0  # from asking for a span to having it, when all SMs ask
    promotion: float = 1.018  # of 8-bit products with adding their sums to float32
    span: float = 70.82  # of 8-bit products, to wait for one
    column_scale: float = 2.445  # a column of tokens, each with its own scale
    tile: float = 1436.0  # its beginning and end
    last: float = 4.294  # spans that are multiplied after the last copy
    result_bytes: float = 13.36  # a cycle
    part: float = 1426.0  # sums that blocks of a cluster send
    part_bytes: float = 26.13  # a cycle
    launch: float = 7572.0
    other: float = 0.2622  # of memory's time and the blocks' the shorter one still shows


CYCLES_PER_US = 1800.0
_SWAPPED_TOKENS = 128  # more than that leave no work undone in rows
# Of tiles that differ by so little the smallest are fastest for few tokens: memory brings them in smaller pieces.
_FEW_TOKENS, _NEAR = 32, 1.02


def cycles(tiles: GemmTiles, shape: ProductShape, sms: int, costs: Costs = Costs()) -> float:  # noqa: B008
    """About how long a product takes."""
    token_tiles, weight_tiles = ceil_div(shape.tokens, tiles.token_tile), ceil_div(shape.n, tiles.weights)
    clusters = tiles.clusters(sms)
    rounds = ceil_div(shape.groups * token_tiles * weight_tiles, clusters * tiles.cluster)
    multiplying = tiles.warpgroups * tiles.waves * max(2 * tiles.columns, 128) * 1.02
    if shape.itemsize == 1:
        multiplying = multiplying * costs.promotion + costs.span
    if shape.has_blocks and not shares_column_scale(tiles, shape):
        multiplying += tiles.columns * costs.column_scale
    span = (tiles.token_tile + tiles.weights) * SPAN_BYTES
    copying = span / min(costs.copied_bytes, tiles.stages * span / costs.latency)
    at_end = costs.tile + tiles.token_tile * tiles.weights * 2 / costs.result_bytes / tiles.parts
    if tiles.parts > 1:
        at_end += costs.part + tiles.part_bytes / costs.part_bytes
    steps = ceil_div(shape.steps, tiles.parts)
    # Copies for the next tile go on while one is written, products don't. The last span is multiplied when it is there.
    blocks = max(rounds * steps * copying + costs.last * multiplying + at_end, rounds * (steps * multiplying + at_end))
    weights = shape.n * (1 + costs.again if token_tiles > 1 else 1)
    operands = (weights + shape.tokens) * shape.k * shape.itemsize
    memory = shape.groups * (operands + shape.tokens * shape.n * 2) / costs.memory_bytes
    return costs.launch + max(blocks, memory) + costs.other * min(blocks, memory)


def _balanced(tiles: GemmTiles, shape: ProductShape, sms: int) -> GemmTiles | None:
    """Fewer weights a tile, if then no block has more to do and fewer have less."""
    if not tiles.swapped or shape.weights_turned:
        return None
    token_tiles = shape.groups * ceil_div(shape.tokens, tiles.token_tile)
    clusters = tiles.clusters(sms)
    rounds = ceil_div(token_tiles * ceil_div(shape.n, tiles.weight_tile), clusters)
    weight_tiles = max(1, rounds * clusters // token_tiles)
    used = ceil_div(ceil_div(shape.n, weight_tiles), 8) * 8
    return tiles._replace(used=used) if used < tiles.weight_tile else None


def candidate_tiles(shape: ProductShape, sms: int) -> Iterator[GemmTiles]:
    """All valid tiles for a product, with as many stages as fit."""
    most_columns = 1 << (shape.tokens - 1).bit_length()
    for swapped in (False, True) if shape.tokens <= _SWAPPED_TOKENS else (False,):
        for warpgroups, waves in ((2, 1), (2, 2), (1, 1)):
            for columns in (8, 16, 32, 64, 128, 256):
                if swapped and columns > max(8, most_columns):
                    continue
                for parts in (1, 2, 4):
                    tiles = GemmTiles(swapped, warpgroups, waves, columns, 2, parts=parts)
                    for one in (tiles, _balanced(tiles, shape, sms)):
                        deep = deepest(one, shape) if one is not None else None
                        if deep is not None:
                            yield deep


def choose_tiles(shape: ProductShape, sms: int) -> GemmTiles:
    """Tiles for a product on a GPU with `sms` multiprocessors.

    Examples
    --------
    >>> shape = ProductShape(groups=1, tokens=16, n=28672, k=4096, itemsize=1, has_blocks=True, shares_scales=True)
    >>> str(choose_tiles(shape, 132))
    '256x16 (weights x tokens), 5 stages, 224 rows of weights'
    """
    # Numbers of tokens that differ little have one choice: engines bring many, and each takes a millisecond.
    step = 8 if shape.tokens <= 128 else 64
    tokens = max(8, ceil_div(shape.tokens, step) * step)
    return _choose(shape._replace(groups=max(1, shape.groups), tokens=tokens, n=max(8, shape.n)), sms)


@functools.lru_cache(4096)
def _choose(shape: ProductShape, sms: int) -> GemmTiles:
    expected = {tiles: cycles(tiles, shape, sms) for tiles in candidate_tiles(shape, sms)}
    chosen = min(expected, key=expected.__getitem__)
    if shape.tokens <= _FEW_TOKENS:
        near = (tiles for tiles, count in expected.items() if count <= _NEAR * expected[chosen])
        chosen = min(near, key=lambda tiles: (tiles.rows * tiles.columns * tiles.parts, expected[tiles]))
    # Of large tiles of 8 bits pairs of blocks that share tokens save up to 2 %, of other tiles nothing.
    paired = deepest(chosen._replace(cluster=2), shape) if chosen.waves == 2 and shape.itemsize == 1 else None
    many = shape.groups * ceil_div(shape.tokens, 256) * ceil_div(shape.n, 128) > 3 * sms
    return paired if paired is not None and many else chosen


def describe_choice(shape: ProductShape, sms: int) -> str:
    """The tiles that a product gets, how they share the SMs, and the time that the model expects.

    Examples
    --------
    >>> describe_choice(ProductShape(groups=1, tokens=1, n=4096, k=7168, itemsize=2), 132)
    '64x8 (weights x tokens), 12 stages, 2 blocks share k; 64 tiles on 132 SMs, about 20 us'
    """
    tiles = choose_tiles(shape, sms)
    number = shape.groups * ceil_div(shape.tokens, tiles.token_tile) * ceil_div(shape.n, tiles.weights)
    return f"{tiles}; {number} tiles on {sms} SMs, about {cycles(tiles, shape, sms) / CYCLES_PER_US:.3g} us"
