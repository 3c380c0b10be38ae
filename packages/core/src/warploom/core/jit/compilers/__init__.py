"""Compilers, by the name that the setting ``compiler`` takes. A new one is one file and one line here."""

from __future__ import annotations

from warploom.core.jit.compilers.base import Compiled, Compiler
from warploom.core.jit.compilers.nvcc import Nvcc
from warploom.core.jit.compilers.nvrtc import Nvrtc
from warploom.core.settings import settings

__all__ = ["COMPILERS", "Compiled", "Compiler", "get_compiler"]

COMPILERS: dict[str, Compiler] = {compiler.name: compiler for compiler in (Nvrtc(), Nvcc())}


def get_compiler(name: str | None = None) -> Compiler:
    """The compiler of a name, by default the setting's."""
    return COMPILERS[name or settings.compiler]
