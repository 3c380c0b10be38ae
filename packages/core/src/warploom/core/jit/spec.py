"""`KernelSpec`: one instance of a kernel template, by named values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from warploom.core.errors import ArgumentError
from warploom.core.jit.libraries import HeaderLibrary
from warploom.core.jit.params import ParamStruct

if TYPE_CHECKING:
    from warploom.core.jit.kernel import Kernel

__all__ = ["TENSOR_MAP", "KernelSpec", "cpp_type"]

TENSOR_MAP = "warploom::TensorMap"  # a kernel parameter that takes a TMA descriptor

_CPP_TYPES = {
    torch.float32: "float",
    torch.float16: "__half",
    torch.bfloat16: "__nv_bfloat16",
    torch.float8_e4m3fn: "__nv_fp8_e4m3",
    torch.float8_e5m2: "__nv_fp8_e5m2",
    torch.int32: "int",
    torch.int64: "long long",
    torch.uint8: "unsigned char",
    torch.bool: "bool",
}


def cpp_type(dtype: torch.dtype) -> str:
    """The C++ element type of a torch dtype."""
    if dtype not in _CPP_TYPES:
        raise ArgumentError.of("cpp_type", "dtype", f"one of {', '.join(map(str, _CPP_TYPES))}", str(dtype))
    return _CPP_TYPES[dtype]


def _literal(name: str, value: Any) -> str:
    if isinstance(value, str):
        return f"  using {name} = {value};"
    if isinstance(value, bool):
        return f"  static constexpr bool {name} = {str(value).lower()};"
    return f"  static constexpr int {name} = {int(value)};"


@dataclass(frozen=True, kw_only=True)
class KernelSpec:
    """One instance of a kernel template.

    Attributes
    ----------
    family : str
        Family that ships the header.
    header : str
        Header that defines the template, as it is included.
    kernel : str
        Qualified name of ``template <class Config> __global__ void kernel(...)``.
    config : mapping of str to str, bool or int
        Named template values. Strings become ``using``, numbers ``static constexpr`` members of ``struct Config``.
    prelude : str
        C++ between the include and ``struct Config``, for types that `config` names.
    params : tuple of ParamStruct classes or str
        The kernel's parameters in order; `TENSOR_MAP` for a TMA descriptor.
    options : tuple of str
        More compiler options, such as ``--use_fast_math``.
    include_dirs : tuple of str
        Folders to search before those of the families, for headers outside the packages.
    libraries : tuple of HeaderLibrary
        Header libraries of other projects that the header includes.
    archs : tuple of str
        Architectures that the instance is built and tested for.
    expect_sass : tuple of str
        Instructions that the machine code must hold, checked in the test suite.

    Examples
    --------
    >>> spec = KernelSpec(family="core", header="warploom/common.cuh", kernel="demo::kernel", config={"kThreads": 128})
    >>> print(spec.source)
    #include "warploom/common.cuh"
    <BLANKLINE>
    struct Config {
      static constexpr int kThreads = 128;
    };
    <BLANKLINE>
    template __global__ void demo::kernel<Config>();
    <BLANKLINE>
    """

    family: str
    header: str
    kernel: str
    config: Mapping[str, str | bool | int] = field(hash=False)
    prelude: str = ""
    params: tuple[type[ParamStruct] | str, ...] = ()
    options: tuple[str, ...] = ()
    include_dirs: tuple[str, ...] = ()
    libraries: tuple[HeaderLibrary, ...] = ()
    archs: tuple[str, ...] = ("sm_80", "sm_90a")
    expect_sass: tuple[str, ...] = ()
    _loaded: dict[int, Kernel] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def name(self) -> str:
        """Unqualified kernel name with its configuration, for people."""
        values = ", ".join(f"{k}={v}" for k, v in self.config.items())
        return f"{self.kernel.rpartition('::')[2]}<{values}>"

    @property
    def stem(self) -> str:
        """Unqualified kernel name, the beginning of its files' names."""
        return self.kernel.rpartition("::")[2]

    @property
    def source(self) -> str:
        """The translation unit: include, layout assertions, ``struct Config``, one explicit instantiation."""
        structs = [p for p in self.params if not isinstance(p, str)]
        types = [p if isinstance(p, str) else p.cpp_name for p in self.params]
        arguments = ", ".join(f"const __grid_constant__ {t}" for t in types)
        blocks = [
            f'#include "{self.header}"',
            *(["\n".join(line for s in structs for line in s.assertions())] if structs else []),
            *([self.prelude] if self.prelude else []),
            "\n".join(["struct Config {", *(_literal(k, v) for k, v in self.config.items()), "};"]),
            f"template __global__ void {self.kernel}<Config>({arguments});",
        ]
        return "\n\n".join(blocks) + "\n"

    def load(self, device: int | torch.device) -> Kernel:
        """Compile or read from the cache, and load for a device; later calls are a dictionary look-up."""
        index = device if isinstance(device, int) else (device.index if device.index is not None else -1)
        kernel = self._loaded.get(index)
        if kernel is None:
            from warploom.core.jit.kernel import load_spec

            kernel = self._loaded[index] = load_spec(self, torch.cuda.current_device() if index < 0 else index)
        return kernel
