"""NVRTC through cuda-python: needs pip packages alone, no toolkit, no host compiler, no driver."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from warploom.core.errors import CompileError
from warploom.core.jit.compilers.base import COMMON_OPTIONS, Compiled, Compiler

__all__ = ["Nvrtc"]

_DISTRIBUTIONS = {"12": "nvidia-cuda-nvrtc-cu12", "13": "nvidia-cuda-nvrtc"}


class Nvrtc(Compiler):
    """The default compiler."""

    name = "nvrtc"

    @functools.cache  # noqa: B019 - compilers live as long as the process
    def version(self) -> str:
        major = importlib.metadata.version("cuda-bindings").partition(".")[0]
        try:
            # Reading the package's metadata takes 1 ms; loading the 100 MB library, which a warm start never needs, 50.
            return "nvrtc-" + importlib.metadata.version(_DISTRIBUTIONS.get(major, _DISTRIBUTIONS["13"]))
        except importlib.metadata.PackageNotFoundError:
            nvrtc = _library()
            return "nvrtc-{}.{}".format(*_call(nvrtc, nvrtc.nvrtcVersion()))

    def compile(self, source: str, name: str, arch: str, options: Sequence[str], includes: Sequence[Path]) -> Compiled:
        nvrtc = _library()
        flags = [f"--gpu-architecture={arch}", *COMMON_OPTIONS, "--ptxas-options=-v", *options]
        flags += [f"-I{folder}" for folder in includes]
        program = _call(nvrtc, nvrtc.nvrtcCreateProgram(source.encode(), f"{name}.cu".encode(), 0, [], []))
        try:
            (status,) = nvrtc.nvrtcCompileProgram(program, len(flags), [flag.encode() for flag in flags])
            log = _read(nvrtc, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).rstrip(b"\0").decode()
            if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
                raise CompileError(f"NVRTC could not compile {name} for {arch} ({status.name}):\n{log}\n{source}")
            return Compiled(_read(nvrtc, nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program), log)
        finally:
            nvrtc.nvrtcDestroyProgram(program)


def _library() -> Any:
    """The binding, with the library proven loadable: a clear error beats the loader's."""
    from cuda.bindings import nvrtc

    try:
        nvrtc.nvrtcVersion()
    except Exception as error:  # the binding raises its own or pathfinder's types, by version
        raise CompileError(
            "NVRTC could not be loaded. Install it with `pip install 'warploom-core[cu13]'` (or [cu12]), or set "
            f"WARPLOOM_COMPILER=nvcc to use a CUDA toolkit. ({type(error).__name__}: {error})"
        ) from error
    return nvrtc


def _call(nvrtc: Any, result: tuple[Any, ...]) -> Any:
    status, *values = result
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise CompileError(f"NVRTC: {status.name}")
    return values[0] if len(values) == 1 else values


def _read(nvrtc: Any, size_of: Any, read: Any, program: Any) -> bytes:
    data = b" " * _call(nvrtc, size_of(program))
    _call(nvrtc, read(program, data))
    return data
