"""TMA descriptors: every rule has its own message before the driver is asked, and equal requests share a descriptor."""

from __future__ import annotations

import ctypes

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from warploom.core import descriptors
from warploom.core.descriptors import TensorMap, TensorView, tensor_map
from warploom.core.errors import ArgumentError, UnsupportedError

BF16 = torch.bfloat16


def view(shape, strides=None, dtype=BF16, pointer=1 << 20):
    strides = strides or torch.empty(shape, device="meta").stride()
    return TensorView(pointer, tuple(shape), tuple(strides), dtype)


@pytest.fixture
def encoded(monkeypatch):
    """Stand in for the driver and record what it is asked."""
    asked = []

    def encode(*request):
        asked.append(request)
        return bytes([len(asked)]) * 128

    monkeypatch.setattr(descriptors, "_encode", encode)
    monkeypatch.setattr(descriptors, "has_driver", lambda: True)
    descriptors._tensor_map.cache_clear()
    yield asked
    descriptors._tensor_map.cache_clear()


@pytest.mark.parametrize(
    ("tensor", "box", "options", "message"),
    [
        (view((2, 3, 4, 5, 6, 64)), (1,) * 6, {}, "`tensor` must be of rank 1 to 5, got rank 6. Merge dimensions"),
        (view(()), (), {}, "must be of rank 1 to 5, got rank 0"),
        (view((0, 64)), (1, 64), {}, r"must be of 1 to 2\*\*32 elements along dimension 0, got 0"),
        (view((2**32 + 1, 64)), (1, 64), {}, r"must be of 1 to 2\*\*32 elements along dimension 0, got 4294967297"),
        (view((8, 64), (1, 8)), (8, 8), {}, r"dense in its last dimension, got stride 8 there. Call contiguous\(\)"),
        (view((8, 64), pointer=8), (8, 64), {}, "a multiple of 16 bytes, got 8 bytes past one"),
        (
            view((8, 65)),
            (8, 64),
            {},
            "strided by a multiple of 16 bytes.*along dimension 0, got 130 bytes. Pad its rows",
        ),
        (view((8, 64), (2**39, 1)), (8, 64), {}, r"less than 2\*\*40, along dimension 0, got 1099511627776 bytes"),
        (view((8, 64)), (64,), {}, r"`box` must be 2 sizes, one for each dimension, got \(64,\)"),
        (view((8, 64)), (257, 64), {}, r"`box` must be sizes from 1 to 256, got \(257, 64\)"),
        (view((8, 64)), (0, 64), {}, r"`box` must be sizes from 1 to 256"),
        (view((8, 64)), (8, 4), {}, "a multiple of 16 bytes along the last dimension, got 4 elements = 8 bytes"),
        (view((8, 128)), (8, 128), {}, "at most 128 bytes .* span of swizzle '128B', got 256. Use at most 64 elements"),
        (view((8, 128)), (8, 64), {"swizzle": "32B"}, "at most 32 bytes .* Use at most 16 elements"),
        (view((8, 64)), (8, 64), {"swizzle": "16B"}, "`swizzle` must be one of none, 32B, 64B, 128B, got '16B'"),
        (view((8, 64)), (8, 64), {"l2": "512B"}, "`l2` must be one of none, 64B, 128B, 256B"),
        (view((8, 64)), (8, 64), {"oob": "one"}, "`oob` must be one of zero, nan"),
        (view((8, 64), dtype=torch.float8_e4m3fn), (8, 64), {"oob": "nan"}, "`oob` must be 'zero' for this dtype"),
        (view((8, 64), dtype=torch.complex64), (8, 8), {}, "`tensor` must be of dtype .*got torch.complex64"),
        (view((8, 64)), (8, 64), {"element_strides": (9, 1)}, "`element_strides` must be sizes from 1 to 8"),
        (view((8, 64)), (8, 64), {"element_strides": (1, 2)}, "1 along the last dimension, where TMA has no steps"),
    ],
)
def test_each_rule_has_its_message(tensor, box, options, message):
    with pytest.raises(ArgumentError, match=message):
        tensor_map(tensor, box, **options)


def test_cpu_tensors_are_refused():
    with pytest.raises(ArgumentError, match="`tensor` must be on an NVIDIA GPU, got cpu"):
        tensor_map(torch.zeros(8, 64, dtype=BF16), (8, 64))


def test_a_machine_without_a_driver_says_so(monkeypatch):
    monkeypatch.setattr(descriptors, "has_driver", lambda: False)
    descriptors._tensor_map.cache_clear()
    with pytest.raises(UnsupportedError, match="lacks"):
        tensor_map(view((8, 64)), (8, 64))


def test_equal_requests_share_one_descriptor(encoded):
    first = tensor_map(view((8, 64)), (8, 64))
    assert tensor_map(view((8, 64)), [8, 64]) is first
    assert tensor_map(view((8, 64)), (8, 64), swizzle="none") is not first
    assert tensor_map(view((8, 64)), (4, 64)) is not first
    assert tensor_map(view((8, 64), pointer=1 << 21), (8, 64)) is not first
    assert tensor_map(view((8, 64), dtype=torch.float16), (8, 64)) is not first
    assert len(encoded) == 5


def test_the_buffer_is_what_a_launch_takes(encoded):
    descriptor = tensor_map(view((8, 64)), (8, 64))
    assert isinstance(descriptor, TensorMap)
    assert ctypes.string_at(ctypes.addressof(descriptor.buffer), 128) == b"\x01" * 128


@pytest.mark.usefixtures("encoded")
def test_sizes_without_a_swizzle_span_and_the_limits_themselves_are_accepted():
    tensor_map(view((8, 512)), (256, 256), swizzle="none")
    tensor_map(view((2**32, 64)), (1, 64))
    tensor_map(view((64,)), (64,))
    tensor_map(view((8, 4, 64), (64, 512, 1)), (1, 4, 64), element_strides=(8, 2, 1))


def test_dimensions_of_size_one_may_have_any_stride(encoded):
    tensor_map(view((1, 8, 64), (3, 64, 1)), (1, 8, 64))
    assert descriptors._strides_in_bytes(encoded[0][0]) == [128, 128]
    tensor_map(view((8, 1), (8, 5)), (8, 8))


@settings(max_examples=50, deadline=None)
@given(shape=st.lists(st.integers(1, 9), min_size=1, max_size=4), data=st.data())
def test_views_describe_torch_tensors(shape, data):
    order = data.draw(st.permutations(range(len(shape))))
    tensor = torch.empty(shape, dtype=BF16).permute(*order)
    described = TensorView.of(tensor)
    assert described == TensorView(tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), BF16, "cpu")


def test_the_driver_gets_dimensions_from_the_innermost(monkeypatch):
    """Encode through the real binding, whose call is replaced: what it is given is checked without a driver."""
    driver = pytest.importorskip("cuda.bindings.driver")
    asked = {}

    def fake(dtype, rank, pointer, dims, strides, box, steps, interleave, swizzle, l2, oob):
        asked.update(dtype=dtype.name, rank=rank, pointer=pointer, swizzle=swizzle.name, l2=l2.name, oob=oob.name)
        asked.update(dims=list(map(int, dims)), strides=list(map(int, strides)), box=list(map(int, box)))
        asked.update(steps=list(map(int, steps)))
        return driver.CUresult.CUDA_SUCCESS, driver.CUtensorMap()

    monkeypatch.setattr(driver, "cuTensorMapEncodeTiled", fake)
    monkeypatch.setattr(descriptors, "has_driver", lambda: True)
    descriptors._tensor_map.cache_clear()
    tensor_map(view((5, 6, 64)), (1, 2, 32), swizzle="64B", l2="128B", oob="nan", element_strides=(3, 2, 1))
    descriptors._tensor_map.cache_clear()
    assert asked == {
        "dtype": "CU_TENSOR_MAP_DATA_TYPE_BFLOAT16",
        "rank": 3,
        "pointer": 1 << 20,
        "swizzle": "CU_TENSOR_MAP_SWIZZLE_64B",
        "l2": "CU_TENSOR_MAP_L2_PROMOTION_L2_128B",
        "oob": "CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA",
        "dims": [64, 6, 5],
        "strides": [128, 768],
        "box": [32, 2, 1],
        "steps": [1, 2, 3],
    }


def test_a_refusal_by_the_driver_shows_the_request(monkeypatch):
    driver = pytest.importorskip("cuda.bindings.driver")
    refuse = (driver.CUresult.CUDA_ERROR_INVALID_VALUE, driver.CUtensorMap())
    monkeypatch.setattr(driver, "cuTensorMapEncodeTiled", lambda *request: refuse)
    with pytest.raises(ArgumentError, match=r"refused TensorView\(.*CUDA_ERROR_INVALID_VALUE"):
        descriptors._encode(view((8, 64)), (8, 64), "128B", "256B", "zero", (1, 1))
