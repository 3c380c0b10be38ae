"""Python mirrors of the kernels' parameter structs.

A kernel takes one struct by value. Its Python mirror lists the same fields as annotations; the compiler then checks
size and offsets through the assertions that `ParamStruct.assertions` writes into every instantiation.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import struct
from typing import Annotated, Any, ClassVar, TypeVar, get_args, get_origin

import torch

__all__ = ["Divisor", "ParamStruct", "divisor_fields", "f32", "f64", "i32", "i64", "ptr", "u32", "u64"]


_Params = TypeVar("_Params", bound="ParamStruct")


class _Scalar:
    code: ClassVar[str]  # of the struct module, with native size and alignment


class ptr(_Scalar):
    """A device pointer: takes a tensor (its data pointer), an address, or None."""

    code = "P"


class i32(_Scalar):
    code = "i"


class u32(_Scalar):
    code = "I"


class i64(_Scalar):
    code = "q"


class u64(_Scalar):
    code = "Q"


class f32(_Scalar):
    code = "f"


class f64(_Scalar):
    code = "d"


Divisor = Annotated[u32, 4]
"""A field of ``warploom::Divisor``, whose values are `divisor_fields`."""


@functools.lru_cache(1024)
def divisor_fields(divisor: int) -> tuple[int, int, int, int]:
    """What ``warploom::Divisor`` divides by with a multiplication and a shift: numbers up to ``2**31 - 1``.

    Examples
    --------
    >>> _, multiplier, shift, _ = divisor_fields(7)
    >>> (1_000_000_006 * multiplier >> 32) >> shift
    142857143
    """
    bits = (divisor - 1).bit_length()
    return divisor, -(-(1 << (31 + bits)) // divisor) & 0xFFFFFFFF, max(bits - 1, 0), 0


def _field(annotation: Any) -> tuple[str, int]:
    """Struct code and count of an annotation: ``ptr``, or ``Annotated[ptr, 8]`` for an array of 8."""
    if get_origin(annotation) is Annotated:
        scalar, count = get_args(annotation)
        return scalar.code, count
    return annotation.code, 1


def _address(value: Any) -> Any:
    return value.data_ptr() if isinstance(value, torch.Tensor) else (value or 0)


class ParamStruct:
    """Base of parameter structs. Subclasses annotate their fields in the order of the C++ struct.

    Attributes
    ----------
    cpp_name : str
        The qualified name of the C++ struct.

    Examples
    --------
    >>> class ScaleParams(ParamStruct):
    ...     cpp_name = "doc::ScaleParams"
    ...     x: ptr
    ...     n: i32
    >>> ScaleParams(x=None, n=3).packed.hex()
    '00000000000000000300000000000000'
    """

    cpp_name: ClassVar[str]
    _fields: ClassVar[dict[str, tuple[str, int]]] = {}
    _offsets: ClassVar[dict[str, int]] = {}
    _packer: ClassVar[struct.Struct]
    _memory: ClassVar[Any]  # the ctypes array that holds one

    def __init_subclass__(cls) -> None:
        annotations = inspect.get_annotations(cls, eval_str=True)
        cls._fields = {name: _field(kind) for name, kind in annotations.items() if name != "cpp_name"}
        codes: list[str] = []
        cls._offsets = {}
        for name, (code, count) in cls._fields.items():
            cls._offsets[name] = struct.calcsize(f"@{''.join(codes)}0{code}")
            codes.append(f"{count}{code}" if count > 1 else code)
        # The closing "0Q" pads the size to 8 bytes; every struct holds a pointer or a 64-bit value, so C++ does too.
        cls._packer = struct.Struct("@" + "".join(codes) + "0Q")
        cls._memory = ctypes.c_char * cls._packer.size

    def __init__(self, **values: Any) -> None:
        flat: list[Any] = []
        for name, (code, count) in self._fields.items():
            value = values.pop(name)
            if count > 1:
                flat.extend(map(_address, value) if code == "P" else value)
            else:
                flat.append(_address(value) if code == "P" else value)
        if values:
            raise TypeError(f"{type(self).__name__} has no field {', '.join(values)}")
        self.packed = self._packer.pack(*flat)
        self.buffer = self._memory.from_buffer_copy(self.packed)

    def replaced(self: _Params, name: str, value: Any) -> _Params:
        """A copy with another value of a field that is no array, for the next of several launches.

        Examples
        --------
        >>> class ScaleParams(ParamStruct):
        ...     cpp_name = "doc::ScaleParams"
        ...     x: ptr
        ...     n: i32
        >>> ScaleParams(x=None, n=3).replaced("n", 4).packed.hex()
        '00000000000000000400000000000000'
        """
        code, _ = self._fields[name]
        other = type(self).__new__(type(self))
        other.buffer = self._memory.from_buffer_copy(self.packed)
        struct.pack_into(f"@{code}", other.buffer, self._offsets[name], _address(value) if code == "P" else value)
        other.packed = other.buffer.raw
        return other

    @classmethod
    def assertions(cls) -> list[str]:
        """C++ static assertions that the C++ struct has this layout."""
        lines = [f'static_assert(sizeof({cls.cpp_name}) == {cls._packer.size}, "{cls.cpp_name}: size");']
        for name, offset in cls._offsets.items():
            lines.append(f'static_assert(WL_OFFSETOF({cls.cpp_name}, {name}) == {offset}, "{cls.cpp_name}::{name}");')
        return lines
