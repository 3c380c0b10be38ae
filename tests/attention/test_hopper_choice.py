"""Which kernel serves a request on Hopper, and what the host gives it room for."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hopper_problem import decode_problem

from warploom.attention.attention import ATTENTION, workspace_bytes
from warploom.attention.backends.hopper.attention import hopper_tiles
from warploom.attention.backends.hopper.boxes import box_rows
from warploom.attention.backends.hopper.decode import decode_tiles
from warploom.attention.options import AttentionOptions
from warploom.core.errors import UnsupportedError

BF16, E4M3 = torch.bfloat16, torch.float8_e4m3fn
OF_A_BLOCK, OF_AN_SM, OF_THE_SYSTEM = 227 * 1024, 228 * 1024, 1024  # bytes of shared memory
DECODE = ATTENTION.backends["hopper_decode"]


def problem(**changes):
    """Of a decode on an H200."""
    return decode_problem(**{"few_rows": True} | changes)


@pytest.mark.parametrize(
    ("changes", "chosen"),
    [
        ({}, "hopper_decode"),
        ({"dtype_kv": E4M3}, "hopper_decode"),
        ({"phase": "prefill"}, "hopper_decode"),
        ({"kv_source": "contiguous", "page_size": 0}, "hopper_decode"),
        ({"few_rows": False}, "cuda"),
        ({"page_size": 8}, "cuda"),
        ({"page_size": 24}, "cuda"),
        ({"head_dim_qk": 40, "head_dim_vo": 40}, "cuda"),
        ({"soft_cap": True, "sliding_window": True}, "hopper_decode"),
        ({"pos_encoding": "ROPE_LLAMA"}, "cuda"),
        ({"pos_encoding": "ALIBI"}, "cuda"),
        ({"sinks": True}, "cuda"),
        ({"mask": "packed"}, "cuda"),
        ({"variant": "mine"}, "cuda"),
        ({"arch": 80}, "cuda"),
        ({"arch": 100}, "cuda"),
        ({"dtype_q": E4M3, "dtype_kv": E4M3}, "reference"),
        ({"phase": "prefill", "few_rows": False}, "hopper"),
        ({"phase": "prefill", "few_rows": False, "dtype_q": E4M3, "dtype_kv": E4M3}, "hopper"),
        ({"phase": "mixed", "few_rows": False, "dtype_q": E4M3, "dtype_kv": E4M3}, "hopper"),
        ({"phase": "mixed", "few_rows": False, "dtype_kv": E4M3}, "cuda"),
        ({"phase": "mixed", "few_rows": False, "sinks": True}, "hopper"),
        ({"phase": "mixed", "few_rows": False, "sinks": True, "dtype_q": E4M3, "dtype_kv": E4M3}, "reference"),
    ],
)
@pytest.mark.filterwarnings("ignore:attention is served by its plain torch reference")
def test_auto(changes, chosen):
    assert ATTENTION.select(problem(**changes), "auto").backend.name == chosen


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"few_rows": False}, "at most 16 rows"),
        ({"page_size": 8}, "multiple of 16 entries, not 8"),
        ({"arch": 100}, "not of sm_100"),
        ({"head_dim_vo": 40}, "multiples of 16"),
        ({"sinks": True}, "of the variants it takes"),
        ({"dtype_kv": torch.float16}, "must be torch.bfloat16 or fp8"),
        ({"dtype_q": E4M3, "dtype_kv": E4M3}, "takes queries of torch.float16, torch.bfloat16"),
    ],
)
def test_decode_refuses_with_its_reasons(changes, why):
    with pytest.raises(UnsupportedError, match=why):
        ATTENTION.select(problem(**changes), "hopper_decode")


def test_few_rows_are_known_from_the_longest_request():
    options = AttentionOptions(num_qo_heads=32, num_kv_heads=8, head_dim_qk=64).resolve("test")
    at = torch.device("cpu")
    rows = {longest: options.problem("decode", "paged", at, longest=longest).few_rows for longest in (1, 4, 5, None)}
    assert rows == {1: True, 4: True, 5: False, None: False}


DIMS = (16, 64, 80, 96, 128, 192, 256)


@pytest.mark.parametrize("dims", [*zip(DIMS, DIMS, strict=True), (192, 128), (64, 256)])
@pytest.mark.parametrize("itemsize", [1, 2])
@pytest.mark.parametrize("is_wide", [False, True])
def test_decode_has_room(dims, itemsize, is_wide):
    tiles = decode_tiles(*dims, itemsize, is_wide)
    # What warps leave for one another, cursors, and barriers.
    static = tiles.warps * 16 * (32 + 6) * 4 + (tiles.warps + 1) * 128 + 512
    assert tiles.stages >= 2
    assert tiles.smem + static <= OF_A_BLOCK
    assert tiles.blocks_per_sm * (tiles.smem + static + OF_THE_SYSTEM) <= OF_AN_SM
    assert tiles.keys % (16 * tiles.warps) == 0
    assert tiles.keys & (tiles.keys - 1) == 0, "the planner shifts by the keys of a tile"


def test_the_largest_stage_of_hopper_has_room():
    for dims, itemsizes in {
        (64, 64): (1, 2),
        (128, 128): (1, 2),
        (96, 96): (2,),
        (192, 128): (2,),
        (256, 256): (2,),
    }.items():
        for itemsize in itemsizes:
            tiles = hopper_tiles(*dims, itemsize)
            assert tiles.stages >= 2
            assert tiles.smem <= 222 * 1024  # beside cursors, rows that are looked up, and barriers


@pytest.mark.parametrize("page_size", [0, 16, 32, 48, 80, 128, 256, 1000 * 16])
@pytest.mark.parametrize("is_wide", [False, True])
def test_a_box_lies_in_one_page_and_has_whole_products(page_size, is_wide):
    keys = decode_tiles(128, 128, 2, is_wide).keys
    rows = box_rows(page_size, keys, least=16)
    assert rows % 16 == 0
    assert rows > 0
    assert keys % rows == 0
    assert page_size % rows == 0
    assert keys // rows <= 32


def test_items_of_about_as_many_as_sms_have_large_tiles():
    def is_wide(batch, **changes):
        return DECODE.has_wide_tiles(problem(**changes), SimpleNamespace(batch=batch))

    assert [batch for batch in range(1, 40) if is_wide(batch)] == list(range(9, 17))
    assert not any(is_wide(batch, deterministic=True) for batch in range(1, 40))


@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize("dtype_kv", [BF16, E4M3])
def test_a_workspace_is_enough_for_every_number_of_rows(dim, dtype_kv):
    of_wrapper = problem(head_dim_qk=dim, head_dim_vo=dim, dtype_kv=dtype_kv, few_rows=False)
    size = workspace_bytes(of_wrapper, "auto")
    for few_rows in (False, True):
        planned = replace(of_wrapper, few_rows=few_rows)
        assert ATTENTION.select(planned, "auto").backend.workspace_layout(planned).nbytes <= size
    assert size <= 64 << 20
    assert workspace_bytes(problem(few_rows=False), "hopper_decode") > 0
    with pytest.raises(UnsupportedError):
        workspace_bytes(problem(few_rows=False, page_size=8), "hopper_decode")
