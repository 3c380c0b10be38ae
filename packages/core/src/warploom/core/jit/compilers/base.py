"""What a compiler is to the JIT."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

__all__ = ["COMMON_OPTIONS", "Compiled", "Compiler"]

COMMON_OPTIONS = ("-std=c++17", "-lineinfo")


@dataclass(frozen=True)
class Compiled:
    """Machine code and what the compiler said (with registers and spills)."""

    cubin: bytes
    log: str


class Compiler(ABC):
    """Turns CUDA C++ into a cubin."""

    name: ClassVar[str]

    @abstractmethod
    def version(self) -> str:
        """Version that goes into cache keys. Raises `CompileError`, saying what to install, if there is none."""

    @abstractmethod
    def compile(self, source: str, name: str, arch: str, options: Sequence[str], includes: Sequence[Path]) -> Compiled:
        """Compile for one architecture with include folders. Raises `CompileError` with the log."""
