"""What a compiled kernel consists of: resources from the compiler's log, instructions from the disassembler."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Resources", "disassemble", "resources_of", "why_no_disassembler"]

_PROPERTIES = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True)
class Resources:
    """Registers of a thread; bytes of its stack frame, of what was spilled to local memory, of static shared memory."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int = 0


def resources_of(log: str) -> Resources:
    """Read the resources of a kernel from the log of ptxas, which both compilers keep; the largest of several.

    Examples
    --------
    >>> resources_of('''0 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
    ... ptxas info    : Used 40 registers, used 0 barriers, 512 bytes smem''')
    Resources(registers=40, stack=0, spill_stores=8, spill_loads=4, shared=512)
    """
    sizes = [tuple(map(int, found)) for found in _PROPERTIES.findall(log)]
    registers = [int(found) for found in _REGISTERS.findall(log)]
    if not sizes or not registers:
        raise ValueError(f"not a log of ptxas -v: {log!r}")
    stack, stores, loads = (max(values) for values in zip(*sizes, strict=True))
    shared = max(map(int, _SHARED.findall(log)), default=0)
    return Resources(max(registers), stack, stores, loads, shared)


@functools.cache
def _nvdisasm() -> Path | None:
    """The disassembler on PATH, in a toolkit, or in the pip package."""
    if found := shutil.which("nvdisasm"):
        return Path(found)
    toolkits = [Path(home) / "bin" for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    packages = [folder for root in sys.path if root for folder in sorted(Path(root).glob("nvidia/cu*/bin"))]
    return next((path for folder in (*toolkits, *packages) if (path := folder / "nvdisasm").is_file()), None)


def why_no_disassembler() -> str:
    """Return why `disassemble` can't work here; "" when it can."""
    return "" if _nvdisasm() else "needs nvdisasm (pip install nvidia-cuda-nvdisasm)"


def disassemble(cubin: bytes) -> str:
    """Return the machine code (SASS) of a cubin as text.

    Raises
    ------
    RuntimeError
        The disassembler is missing or refuses the cubin.
    """
    tool = _nvdisasm()
    if tool is None:
        raise RuntimeError(why_no_disassembler())
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        # Code sections only, and no data-flow analysis, which costs time and adds nothing to the instructions.
        command = [str(tool), "--print-code", "--no-dataflow", file.name]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"nvdisasm: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
