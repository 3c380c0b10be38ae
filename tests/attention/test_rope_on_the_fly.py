"""Rotation on the fly, as far as the host decides: turns in fixed point, shared memory, who refuses."""

import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hopper_problem import decode_problem

from warploom.attention.attention import ATTENTION
from warploom.attention.backends.cuda.attention_kernel import kernel_shape, tile_keys
from warploom.attention.backends.cuda.rope_turns import rope_turns
from warploom.core.testing import cases

REVOLUTION = 2 * Fraction("3.14159265358979323846264338327950288419716939937510")  # in radians
POSITIONS = [0, 1, 63, 4097, 131072, 1_000_003, 2**31 - 1, -1, -77]


def turns_of(head_dim, rope_scale, rope_theta):
    packed = np.frombuffer(rope_turns(head_dim, rope_scale, rope_theta).packed, np.uint64)
    assert not packed[head_dim // 2 :].any()
    return packed[: head_dim // 2]


def exact_angle(position, pair, head_dim, rope_scale, rope_theta):
    """Radians, from 0 to a revolution, of a frequency that is rounded to float32 once."""
    frequency = np.float32(rope_theta ** (-2 * pair / head_dim) / rope_scale)
    return float(position * Fraction(float(frequency)) % REVOLUTION)


@pytest.mark.parametrize(*cases(head_dim=[8, 64, 128, 256], scaling=[(1.0, 1e4), (8.0, 5e5), (0.3, 1e6), (1e-3, 50.0)]))
def test_turns_give_exact_angles_at_any_position(case):
    turns = turns_of(case.head_dim, *case.scaling)
    for position in POSITIONS:
        with np.errstate(over="ignore"):
            found = np.uint64(position % 2**64) * turns
        for pair in range(0, case.head_dim // 2, 3):
            exact = exact_angle(position, pair, case.head_dim, *case.scaling)
            off = abs(float(found[pair]) / 2**64 * math.tau - exact)
            # Radians that a float64 number and then whole 2**-64 revolutions leave of a turn, at each position.
            frequency = case.scaling[1] ** (-2 * pair / case.head_dim) / case.scaling[0]
            assert min(off, math.tau - off) <= abs(position) * (frequency * 2**-51 + 2**-61) + 1e-15


def test_what_the_kernel_makes_of_them_is_as_exact_as_its_sines():
    # rotation.cuh: the angle of a lane's first row in 32 bits, the upper half of a turn for each row onwards, float32 radians.
    turns = turns_of(128, 1.0, 1e4)
    for position in POSITIONS:
        for onwards in (0, 4, 12, 15):
            with np.errstate(over="ignore"):
                first = (np.uint64(position % 2**64) * turns >> np.uint64(32)).astype(np.uint32)
                angle = first + np.uint32(onwards) * (turns >> np.uint64(32)).astype(np.uint32)
            radians = angle.view(np.int32).astype(np.float32) * np.float32(math.tau / 2**32)
            exact = np.array([exact_angle(position + onwards, pair, 128, 1.0, 1e4) for pair in range(64)])
            assert np.abs(np.sin(radians.astype(np.float64)) - np.sin(exact)).max() < 2**-20
            assert np.abs(np.cos(radians.astype(np.float64)) - np.cos(exact)).max() < 2**-20


@pytest.mark.parametrize(*cases(head_dim=[16, 64, 80, 128, 192, 256], itemsize=[1, 2], has_wide=[False, True]))
def test_rotated_keys_have_room_in_shared_memory(case):
    keys = tile_keys(case.head_dim, case.head_dim, case.itemsize, has_rope=True)
    for arch, kilobytes in ((80, 164), (90, 228)):
        plain = kernel_shape(case.head_dim, case.head_dim, case.itemsize, case.has_wide, arch)
        shape = kernel_shape(case.head_dim, case.head_dim, case.itemsize, case.has_wide, arch, has_rope=True)
        assert shape.stages >= 2
        assert shape.blocks_per_sm * shape.smem < kilobytes * 1024
        if case.itemsize == 2:
            assert shape == plain, "keys of 16 bits turn where they are"
        else:
            row = -(-case.head_dim // 128) * 128
            rotated = -(-2 * case.head_dim // 128) * 128
            assert shape.smem == keys * (shape.stages * 2 * row + rotated)


def problem(**changes):
    """Of a decode on an H200 that rotates."""
    return decode_problem(**{"pos_encoding": "ROPE_LLAMA"} | changes)


@pytest.mark.parametrize(
    "changes",
    [{}, {"soft_cap": True}, {"mask": "packed"}, {"dtype_kv": torch.float8_e4m3fn}, {"variant": "mine"}, {"cuda_graph": True},
     {"deterministic": True}, {"head_dim_qk": 40, "head_dim_vo": 40}, {"head_dim_qk": 256, "head_dim_vo": 256}],
)  # fmt: skip
def test_decodes_that_rotate_take_the_portable_kernel(changes):
    selection = ATTENTION.select(problem(**changes), "auto")
    assert selection.backend.name == "cuda"


def test_the_hopper_kernel_refuses():
    long = problem(phase="prefill")
    assert ATTENTION.backends["hopper"].check(long).reasons == ("does not rotate queries and keys on the fly",)
    assert ATTENTION.backends["cuda"].check(long)


def test_long_queries_of_large_heads_have_small_tiles():
    cuda, large = ATTENTION.backends["cuda"], {"head_dim_qk": 192, "head_dim_vo": 128}
    assert cuda.has_wide_tiles(problem(), SimpleNamespace(max_qo_len=500))
    assert cuda.has_wide_tiles(problem(pos_encoding="NONE", **large), SimpleNamespace(max_qo_len=500))
    assert not cuda.has_wide_tiles(problem(**large), SimpleNamespace(max_qo_len=500))
