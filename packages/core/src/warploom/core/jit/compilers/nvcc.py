"""nvcc, run through ninja: for what NVRTC cannot take and for bulk builds. Needs a toolkit and a host compiler."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from warploom.core.errors import CompileError
from warploom.core.jit.compilers.base import COMMON_OPTIONS, Compiled, Compiler
from warploom.core.settings import settings

__all__ = ["Nvcc", "find_nvcc"]

_NINJA = """\
rule nvcc
  command = {nvcc} -cubin -arch={arch} {options} -Xptxas=-v -MD -MF $out.d -o $out $in
  depfile = $out.d
  description = nvcc $in
build kernel.cubin: nvcc {source}
"""


def find_nvcc() -> Path | None:
    """nvcc of the setting, of PATH, of CUDA_HOME, or of the pip package ``nvidia-cuda-nvcc``."""
    if settings.nvcc is not None:
        return Path(settings.nvcc) if Path(settings.nvcc).is_file() else None
    if found := shutil.which("nvcc"):
        return Path(found)
    homes = [Path(home) / "bin" for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    packages = [Path(folder) / "nvidia" / "cu13" / "bin" for folder in sys.path if folder]
    return next((path for folder in (*homes, *packages) if (path := folder / "nvcc").is_file()), None)


def _nvcc() -> Path:
    path = find_nvcc()
    if path is None:
        wanted = (
            f"{settings.nvcc} does not exist"
            if settings.nvcc is not None
            else "none on PATH, in CUDA_HOME or in pip packages"
        )
        raise CompileError(
            f"no nvcc: {wanted}. Set WARPLOOM_NVCC, or use the default WARPLOOM_COMPILER=nvrtc, which needs none."
        )
    return path


@functools.cache
def _version(path: Path) -> str:
    text = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"V(\d+\.\d+\.\d+)", text)
    return f"nvcc-{found.group(1) if found else text.strip()}"


class Nvcc(Compiler):
    """The toolkit's compiler."""

    name = "nvcc"

    def version(self) -> str:
        return _version(_nvcc())

    def compile(self, source: str, name: str, arch: str, options: Sequence[str], includes: Sequence[Path]) -> Compiled:
        nvcc = _nvcc()
        with tempfile.TemporaryDirectory(prefix="warploom-nvcc-") as folder:
            unit = Path(folder) / f"{name}.cu"
            unit.write_text(source)
            flags = [*COMMON_OPTIONS, *options, *(f"-I{include}" for include in includes)]
            rules = _NINJA.format(
                nvcc=_escape(str(nvcc)), arch=arch, options=_escape(" ".join(flags)), source=unit.name
            )
            (Path(folder) / "build.ninja").write_text(rules)
            done = subprocess.run([_ninja(), "-v"], cwd=folder, capture_output=True, text=True)
            if done.returncode != 0:
                raise CompileError(f"nvcc could not compile {name} for {arch}:\n{done.stdout}{done.stderr}\n{source}")
            return Compiled((Path(folder) / "kernel.cubin").read_bytes(), done.stdout + done.stderr)


def _ninja() -> str:
    found = shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))
    if found is None:
        raise CompileError("no ninja found; install it with `pip install ninja`.")
    return found


def _escape(text: str) -> str:
    return text.replace("$", "$$").replace(":", "$:")
