"""compute-sanitizer finds no bad access and no race in shared memory in the kernel of products."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu(arch=90)

SANITIZER = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
PRODUCTS = Path(__file__).parents[1] / "small_products.py"


@pytest.mark.skipif(SANITIZER is None, reason="needs compute-sanitizer")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_sanitizer_has_nothing_to_say(tool):
    command = [SANITIZER, "--tool", tool, "--kernel-name", "kns=gemm_kernel", "--error-exitcode", "9"]
    if tool == "memcheck":
        command += ["--report-api-errors", "no"]  # torch and drivers ask for what may not be there
    done = subprocess.run([*command, sys.executable, str(PRODUCTS)], capture_output=True, text=True, timeout=500)
    said = done.stdout + done.stderr
    if "Device not supported" in said or "LibraryNotLoaded" in said:
        pytest.skip("compute-sanitizer does not run on this machine")
    assert done.returncode == 0, said[-4000:]
    assert "ERROR SUMMARY: 0 errors" in said or "RACECHECK SUMMARY: 0 hazards" in said, said[-4000:]
