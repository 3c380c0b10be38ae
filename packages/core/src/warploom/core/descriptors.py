"""TMA descriptors: cached `CUtensorMap` objects from validated descriptions of tensors.

The driver answers every mistake in a descriptor with one "invalid value"; the rules are therefore checked here first,
each with its own message. They are those of ``cuTensorMapEncodeTiled`` in the CUDA driver API reference.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from warploom.core.device import has_driver
from warploom.core.errors import ArgumentError, UnsupportedError

__all__ = ["TensorMap", "TensorView", "tensor_map"]

_MAX_RANK, _MAX_DIM, _MAX_BOX, _MAX_ELEMENT_STRIDE = 5, 1 << 32, 256, 8
_MAX_STRIDE_BYTES = 1 << 40
_SPAN = {"none": None, "32B": 32, "64B": 64, "128B": 128}
_L2 = {"none": "NONE", "64B": "L2_64B", "128B": "L2_128B", "256B": "L2_256B"}
_OOB = {"zero": "NONE", "nan": "NAN_REQUEST_ZERO_FMA"}
# Eight-bit floats are bytes to TMA, which never computes with them.
_DTYPES = {
    torch.uint8: "UINT8",
    torch.int8: "UINT8",
    torch.float8_e4m3fn: "UINT8",
    torch.float8_e5m2: "UINT8",
    torch.int32: "INT32",
    torch.int64: "INT64",
    torch.float16: "FLOAT16",
    torch.bfloat16: "BFLOAT16",
    torch.float32: "FLOAT32",
    torch.float64: "FLOAT64",
}


@dataclass(frozen=True)
class TensorView:
    """Address, shape, strides (in elements, outermost first) and dtype of memory that a kernel sees as a tensor.

    Examples
    --------
    >>> view = TensorView.of(torch.zeros(4, 8, 64, dtype=torch.float16).transpose(0, 1))
    >>> view.shape, view.strides
    ((8, 4, 64), (64, 512, 1))
    """

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device_type: str = "cuda"

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorView:
        """Describe a torch tensor."""
        return cls(tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device.type)


class TensorMap:
    """A 128-byte TMA descriptor; pass it to `Kernel.launch` for a ``const __grid_constant__ warploom::TensorMap``.

    Attributes
    ----------
    buffer : ctypes array
        The descriptor's bytes, which a launch copies.
    """

    __slots__ = ("buffer",)

    def __init__(self, data: bytes) -> None:
        self.buffer = (ctypes.c_char * 128).from_buffer_copy(data)


def tensor_map(
    tensor: torch.Tensor | TensorView,
    box: Sequence[int],
    *,
    swizzle: str = "128B",
    l2: str = "256B",
    oob: str = "zero",
    element_strides: Sequence[int] | None = None,
) -> TensorMap:
    """Return the descriptor by which TMA copies boxes of a tensor; equal requests share one.

    Parameters
    ----------
    tensor : torch.Tensor or TensorView
        GPU tensor of rank 1 to 5, dense in its last dimension; starts at a multiple of 16 bytes, and its other strides
        are multiples of 16 bytes.
    box : sequence of int
        Elements copied at once along each dimension, outermost first, at most 256 each. The last dimension's bytes are
        a multiple of 16, and at most the swizzle's span.
    swizzle : {"128B", "64B", "32B", "none"}
        How rows are spread over shared-memory banks.
    l2 : {"256B", "128B", "64B", "none"}
        Promotion: how much of a line the L2 fetches at least. Rows of 128 bytes that lie apart are read 8 % slower with 256B.
    oob : {"zero", "nan"}
        What elements outside the tensor read as.
    element_strides : sequence of int, optional
        Steps of 1 to 8 along each dimension, outermost first; 1 along the last.

    Raises
    ------
    ArgumentError
        A rule is broken; the message names it.
    UnsupportedError
        This machine has no NVIDIA driver.

    Examples
    --------
    >>> a = torch.empty(4096, 7168, dtype=torch.bfloat16, device="cuda")  # doctest: +SKIP
    >>> descriptor = tensor_map(a, box=(128, 64))  # doctest: +SKIP
    """
    view = tensor if isinstance(tensor, TensorView) else TensorView.of(tensor)
    steps = tuple(element_strides) if element_strides is not None else (1,) * len(view.shape)
    return _tensor_map(view, tuple(box), swizzle, l2, oob, steps)


@functools.lru_cache(maxsize=4096)
def _tensor_map(
    view: TensorView, box: tuple[int, ...], swizzle: str, l2: str, oob: str, steps: tuple[int, ...]
) -> TensorMap:
    _check_options(view, swizzle, l2, oob)
    _check_tensor(view)
    _check_box(view, box, swizzle, steps)
    if view.device_type != "cuda":
        raise _wrong("tensor", "on an NVIDIA GPU", view.device_type)
    if not has_driver():
        raise UnsupportedError("tensor_map: TMA descriptors are encoded by the NVIDIA driver, which this machine lacks")
    return TensorMap(_encode(view, box, swizzle, l2, oob, steps))


def _wrong(name: str, expected: str, got: object, hint: str = "") -> ArgumentError:
    return ArgumentError.of("tensor_map", name, expected, got, hint)


def _check_options(view: TensorView, swizzle: str, l2: str, oob: str) -> None:
    for name, value, known in (("swizzle", swizzle, _SPAN), ("l2", l2, _L2), ("oob", oob, _OOB)):
        if value not in known:
            raise _wrong(name, f"one of {', '.join(known)}", repr(value))
    if view.dtype not in _DTYPES:
        raise _wrong("tensor", f"of dtype {', '.join(str(dtype) for dtype in _DTYPES)}", view.dtype)
    if oob == "nan" and _DTYPES[view.dtype] in ("UINT8", "INT32", "INT64"):
        raise _wrong("oob", "'zero' for this dtype", "'nan'", f"TMA can't write NaN of {view.dtype}.")


def _check_tensor(view: TensorView) -> None:
    rank = len(view.shape)
    if not 1 <= rank <= _MAX_RANK:
        raise _wrong("tensor", f"of rank 1 to {_MAX_RANK}", f"rank {rank}", "Merge dimensions with view().")
    for axis, size in enumerate(view.shape):
        if not 1 <= size <= _MAX_DIM:
            raise _wrong("tensor", f"of 1 to 2**32 elements along dimension {axis}", size)
    if view.strides[-1] != 1 and view.shape[-1] != 1:
        raise _wrong("tensor", "dense in its last dimension", f"stride {view.strides[-1]} there", "Call contiguous().")
    if view.pointer % 16:
        raise _wrong("tensor", "at an address that is a multiple of 16 bytes", f"{view.pointer % 16} bytes past one")
    for axis, stride in enumerate(_strides_in_bytes(view)):
        if stride % 16 or stride >= _MAX_STRIDE_BYTES:
            expected = f"strided by a multiple of 16 bytes, less than 2**40, along dimension {axis}"
            raise _wrong("tensor", expected, f"{stride} bytes", "Pad its rows.")


def _check_box(view: TensorView, box: tuple[int, ...], swizzle: str, steps: tuple[int, ...]) -> None:
    rank = len(view.shape)
    for name, values, limit in (("box", box, _MAX_BOX), ("element_strides", steps, _MAX_ELEMENT_STRIDE)):
        if len(values) != rank:
            raise _wrong(name, f"{rank} sizes, one for each dimension", values)
        if not all(1 <= value <= limit for value in values):
            raise _wrong(name, f"sizes from 1 to {limit}", values)
    if steps[-1] != 1:
        raise _wrong("element_strides", "1 along the last dimension, where TMA has no steps", steps)
    inner, span = box[-1] * view.dtype.itemsize, _SPAN[swizzle]
    if inner % 16:
        raise _wrong("box", "a multiple of 16 bytes along the last dimension", f"{box[-1]} elements = {inner} bytes")
    if span is not None and inner > span:
        hint = f"Use at most {span // view.dtype.itemsize} elements there, or another swizzle."
        raise _wrong(
            "box", f"at most {span} bytes along the last dimension, the span of swizzle {swizzle!r}", inner, hint
        )


def _strides_in_bytes(view: TensorView) -> list[int]:
    """Strides of all dimensions but the last. That of a dimension of size 1 is never used and may be anything."""
    size, strides = view.dtype.itemsize, []
    for axis in range(len(view.shape) - 1):
        strides.append(view.strides[axis] * size if view.shape[axis] > 1 else (view.shape[-1] * size + 15) // 16 * 16)
    return strides


def _encode(view: TensorView, box: tuple[int, ...], swizzle: str, l2: str, oob: str, steps: tuple[int, ...]) -> bytes:
    """Ask the driver; it counts dimensions from the innermost."""
    from cuda.bindings import driver

    def name(enum: Any, prefix: str, value: str) -> Any:
        return getattr(enum, f"CU_TENSOR_MAP_{prefix}_{value}")

    status, encoded = driver.cuTensorMapEncodeTiled(
        name(driver.CUtensorMapDataType, "DATA_TYPE", _DTYPES[view.dtype]),
        len(view.shape),
        view.pointer,
        [driver.cuuint64_t(size) for size in reversed(view.shape)],
        [driver.cuuint64_t(stride) for stride in reversed(_strides_in_bytes(view))],
        [driver.cuuint32_t(size) for size in reversed(box)],
        [driver.cuuint32_t(step) for step in reversed(steps)],
        driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        name(driver.CUtensorMapSwizzle, "SWIZZLE", swizzle.upper()),
        name(driver.CUtensorMapL2promotion, "L2_PROMOTION", _L2[l2]),
        name(driver.CUtensorMapFloatOOBfill, "FLOAT_OOB_FILL", _OOB[oob]),
    )
    if int(status) != 0:
        raise ArgumentError(f"tensor_map: the driver refused {view} with box {box}, swizzle {swizzle}: {status.name}")
    return ctypes.string_at(encoded.getPtr(), 128)
