"""Tiles of the Hopper products: what is valid, what is chosen, and that the kernel's constants are those of Python."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from warploom.core.jit import compile_spec
from warploom.core.testing.machine_code import resources_of
from warploom.gemm.backends.hopper.gemm_kernel import Grouping, KernelKind, Scaling, product_spec
from warploom.gemm.backends.hopper.tile_choice import candidate_tiles, choose_tiles, cycles, describe_choice
from warploom.gemm.backends.hopper.tiles import (
    GemmTiles,
    ProductShape,
    deepest,
    shares_column_scale,
    static_bytes,
    tile_support,
)

SMS = 132


@st.composite
def shapes(draw):
    itemsize = draw(st.sampled_from([1, 2]))
    has_blocks = itemsize == 1 and draw(st.booleans())
    return ProductShape(
        groups=draw(st.integers(1, 512)),
        tokens=draw(st.integers(1, 20_000)),
        n=draw(st.integers(1, 40_000)),
        k=draw(st.integers(1, 40_000)),
        itemsize=itemsize,
        has_blocks=has_blocks,
        shares_scales=has_blocks and draw(st.booleans()),
        weights_turned=itemsize == 2 and draw(st.booleans()),
    )


@given(shape=shapes(), sms=st.sampled_from([SMS, 114, 78, 16]))
@settings(max_examples=60, deadline=None)
def test_chosen_tiles_are_valid(shape, sms):
    tiles = choose_tiles(shape, sms)
    assert tile_support(tiles, shape)
    assert tiles.parts <= shape.steps
    assert tiles.blocks <= sms
    assert deepest(tiles, shape) == tiles  # one stage more would not fit
    assert describe_choice(shape, sms).startswith(str(tiles))


@given(shape=shapes())
@settings(max_examples=20, deadline=None)
def test_all_candidates_are_valid_and_different(shape):
    found = list(candidate_tiles(shape, SMS))
    assert len(set(found)) == len(found)
    assert all(tile_support(tiles, shape) for tiles in found)
    assert all(cycles(tiles, shape, SMS) > 0 for tiles in found)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"columns": 24}, "tiles have 8, 16, ... or 256 columns"),
        ({"columns": 32}, "tokens in rows need at least 64 columns"),
        ({"warpgroups": 2, "waves": 3}, "at most 256 rows"),
        ({"stages": 1}, "2 to 12 stages"),
        ({"stages": 12}, "bytes of shared memory"),
        ({"cluster": 3}, "1 or 2 blocks share tokens"),
        ({"parts": 3}, "1, 2, 4 or 8 blocks share k"),
        ({"parts": 8}, "can't share 4 steps of k"),
        ({"parts": 2, "cluster": 2}, "blocks share tokens in rows, or k"),
        ({"used": 12}, "a tile takes 8, 16, ... rows of weights"),
        ({"used": 136}, "a tile takes 8, 16, ... rows of weights"),
        ({"waves": 2, "columns": 256}, "sums take 384 registers"),
    ],
)
def test_reasons(changes, reason):
    shape = ProductShape(groups=1, tokens=4096, n=4096, k=512, itemsize=1)
    tiles = GemmTiles(False, 2, 1, 128, 4)
    assert tile_support(tiles, shape)
    assert any(reason in one for one in tile_support(tiles._replace(**changes), shape).reasons)


def test_weights_stored_the_other_way():
    turned = ProductShape(groups=1, tokens=4096, n=4096, k=512, itemsize=2, weights_turned=True)
    tiles = GemmTiles(True, 2, 1, 16, 4)
    assert tile_support(tiles, turned)
    assert not tile_support(tiles._replace(used=112), turned)
    assert not tile_support(tiles, turned._replace(itemsize=1))


def test_few_tokens_lie_in_columns_and_many_in_rows():
    few = ProductShape(groups=1, tokens=4, n=8192, k=8192, itemsize=2)
    assert choose_tiles(few, SMS).swapped
    assert not choose_tiles(few._replace(tokens=4096), SMS).swapped


def test_near_numbers_of_tokens_share_a_choice():
    shape = ProductShape(groups=1, tokens=1000, n=8192, k=8192, itemsize=2)
    assert choose_tiles(shape, SMS) == choose_tiles(shape._replace(tokens=1020), SMS)


def test_blocks_of_scales_that_a_tile_crosses_are_not_shared():
    shape = ProductShape(groups=1, tokens=128, n=4096, k=4096, itemsize=1, has_blocks=True, shares_scales=True)
    tiles = GemmTiles(False, 2, 1, 128, 4)
    assert shares_column_scale(tiles, shape)
    assert not shares_column_scale(tiles._replace(used=112), shape)
    assert not shares_column_scale(tiles, shape._replace(shares_scales=False))


def test_balanced_tiles_give_all_blocks_as_much():
    shape = ProductShape(groups=1, tokens=16, n=28672, k=4096, itemsize=1, has_blocks=True, shares_scales=True)
    tiles = choose_tiles(shape, SMS)
    number = -(-shape.n // tiles.weights)
    rounds = -(-number // SMS)
    assert tiles.used < tiles.weight_tile
    assert number > 0.95 * rounds * SMS


@pytest.mark.parametrize(
    "tiles",
    [
        GemmTiles(False, 1, 1, 64, 12),
        GemmTiles(False, 1, 1, 64, 10, parts=2),
        GemmTiles(True, 1, 1, 8, 12),
        GemmTiles(True, 2, 2, 16, 5),
    ],
    ids=str,
)
@pytest.mark.parametrize("shares_scales", [False, True])
def test_no_kernel_has_more_static_memory_than_is_counted(tiles, shares_scales):
    shape = ProductShape(8, 64, 1024, 1024, 1, has_blocks=True, shares_scales=shares_scales)
    kind = KernelKind(torch.float8_e4m3fn, torch.bfloat16, Grouping.OFFSETS, Scaling.OF_BLOCKS)
    log = compile_spec(product_spec(tiles, kind, shape), "sm_90a").entry.record["log"]
    counted = static_bytes(tiles, shape.has_blocks, shares_column_scale(tiles, shape))
    assert counted - 512 < resources_of(log).shared <= counted


MEASURED = Path(__file__).parents[2] / "docs" / "benchmarks" / "h200" / "gemm_tiles.json"


def test_chosen_tiles_are_near_the_best_that_were_measured():
    """On an H200; ``python tools/tune/gemm_tiles.py regret`` names the products."""
    regrets = {1: [], 2: []}
    for one in json.loads(MEASURED.read_text()):
        us = {GemmTiles(*tiles): time for tiles, time in one["us"]}
        shape = ProductShape(**one["shape"])
        chosen = choose_tiles(shape, SMS)
        if chosen in us:
            regrets[shape.itemsize].append(us[chosen] / min(us.values()))
    both = [*regrets[1], *regrets[2]]
    assert len(both) > 90
    assert sum(both) / len(both) < 1.012
    assert max(regrets[1]) < 1.06
    assert max(regrets[2]) < 1.16
