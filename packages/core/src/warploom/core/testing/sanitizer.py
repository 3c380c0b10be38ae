"""Programs under compute-sanitizer, which follows every access of the kernels that it is asked to."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["assert_sanitizer_is_silent"]

_SANITIZER = "compute-sanitizer"


def assert_sanitizer_is_silent(tool: str, kernels: str, program: Path, *arguments: str) -> None:
    """Run a Python program, and fail if the sanitizer finds a bad access or a race; skip where it does not run.

    Parameters
    ----------
    tool : {"memcheck", "racecheck"}
        Of compute-sanitizer.
    kernels : str
        A part of the names of the kernels that it follows.
    """
    import pytest  # here, so that benchmarks can import the package on machines without pytest

    sanitizer = shutil.which(_SANITIZER) or shutil.which(_SANITIZER, path="/usr/local/cuda/bin")
    if sanitizer is None:
        pytest.skip("needs compute-sanitizer")
    command = [sanitizer, "--tool", tool, "--kernel-name", f"kns={kernels}", "--error-exitcode", "9"]
    if tool == "memcheck":
        command += ["--report-api-errors", "no"]  # torch and drivers ask for what may not be there
    command += [sys.executable, str(program), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    said = done.stdout + done.stderr
    if "Device not supported" in said or "LibraryNotLoaded" in said:
        pytest.skip("compute-sanitizer does not run on this machine")
    assert done.returncode == 0, said[-4000:]
    assert "ERROR SUMMARY: 0 errors" in said or "RACECHECK SUMMARY: 0 hazards" in said, said[-4000:]
