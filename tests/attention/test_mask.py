"""Packing masks, against NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from warploom.attention import packbits, segment_packbits
from warploom.core.errors import ArgumentError
from warploom.core.testing import indptr_of, poison_like

ORDERS = st.sampled_from(["big", "little"])


@given(bits=st.lists(st.booleans(), max_size=50), bitorder=ORDERS)
def test_packbits_is_numpys(bits, bitorder):
    x = np.array(bits, dtype=bool)
    assert (
        packbits(torch.tensor(bits, dtype=torch.bool), bitorder).tolist() == np.packbits(x, bitorder=bitorder).tolist()
    )


@given(lens=st.lists(st.integers(0, 30), max_size=6), bitorder=ORDERS, seed=st.integers(0, 99), spare=st.integers(0, 9))
def test_segments_start_at_bytes(lens, bitorder, seed, spare):
    x = np.random.default_rng(seed).random(sum(lens)) < 0.5
    ends = np.cumsum(lens, dtype=int)
    parts = [np.packbits(x[end - n : end], bitorder=bitorder) for n, end in zip(lens, ends, strict=True)]
    expected = [byte for part in parts for byte in part.tolist()]
    packed, indptr = segment_packbits(torch.from_numpy(x), indptr_of(lens), bitorder)
    assert packed.dtype == torch.uint8
    assert packed.tolist() == expected
    assert indptr.dtype == torch.int32
    assert indptr.tolist() == [0, *np.cumsum([len(part) for part in parts], dtype=int).tolist()]

    size = (sum(lens) + 7 * len(lens)) // 8 + spare
    out = poison_like(torch.empty(size, dtype=torch.uint8)), torch.empty(len(lens) + 1, dtype=torch.int32)
    results = segment_packbits(torch.from_numpy(x), indptr_of(lens), bitorder, out=out)
    assert results[0] is out[0]
    assert out[0].tolist() == expected + [0] * (size - len(expected))
    assert torch.equal(out[1], indptr)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
def test_what_is_not_zero_is_one(dtype):
    x = torch.tensor([3, 0, 1, 0, 0, 0, 0, 0, 255]).to(dtype)
    assert packbits(x).tolist() == [0b10100000, 0b10000000]


def test_strided_inputs_and_buffers():
    x = torch.randint(0, 2, (40,))
    out = torch.empty(6, dtype=torch.uint8)[::2]
    assert packbits(x[::2], out=out) is out
    assert torch.equal(out, packbits(x[::2].contiguous()))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: packbits(torch.zeros(2, 2)), ["packbits", "`x`", "2-D"]),
        (lambda: packbits(torch.zeros(2), "middle"), ["bitorder", "'big' or 'little'", "'middle'"]),
        (lambda: packbits(torch.zeros(9), out=torch.zeros(1, dtype=torch.uint8)), ["out", "(2,)"]),
        (lambda: packbits(torch.zeros(9), backend="vulkan"), ["backend", "reference"]),
        (lambda: segment_packbits(torch.zeros(9), torch.zeros(2)), ["segment_packbits", "`indptr`", "int32"]),
        (lambda: segment_packbits(torch.zeros(9), torch.zeros(0, dtype=torch.int32)), ["batch + 1"]),
        (
            lambda: segment_packbits(torch.zeros(9), indptr_of([1, 8]), out=(torch.zeros(1, dtype=torch.uint8), None)),
            ["out[0]", "2 bytes or more"],
        ),
    ],
)
def test_bad_arguments_name_themselves(call, words):
    with pytest.raises(ArgumentError) as error:
        call()
    for word in words:
        assert word in str(error.value)


def test_inside_a_compiled_program():
    def program(x, indptr):
        packed, packed_indptr = segment_packbits(x, indptr, "little")
        return packbits(x), packed, packed_indptr

    torch.compiler.reset()
    compiled = torch.compile(program, fullgraph=True, backend="aot_eager", dynamic=True)
    for lens in ([3, 9], [17, 0]):
        x = torch.arange(sum(lens)) % 3 == 0
        for got, want in zip(compiled(x, indptr_of(lens)), program(x, indptr_of(lens)), strict=True):
            assert torch.equal(got, want)
