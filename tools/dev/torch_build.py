"""Which torch to install: one built for CUDA only where there is an NVIDIA GPU to run it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# Asked for first, then whatever is newest: where pip has a CPU build at hand it is usually the version tested here.
TESTED = "torch==2.13.0"
_FIRST_CUDA_13_DRIVER = 580


@dataclass(frozen=True)
class TorchChoice:
    """What to install, through uv's table of torch builds (`backend`) or plainly through pip."""

    requirement: str
    backend: str | None
    what: str

    def __str__(self) -> str:
        return self.what


def choose(python: Path, env: Mapping[str, str], any_torch: bool = False) -> TorchChoice:
    """Choose for this machine.

    Without a GPU that is a CPU build: several GB of CUDA libraries would never be used. pip says by a dry run
    whether what it would take is one; where it is not, uv knows where torch's CPU builds are.
    """
    if any_torch:
        return TorchChoice("torch", None, "torch as pip offers it")
    if has_nvidia_gpu():
        driver = driver_version()
        if driver is not None and driver < _FIRST_CUDA_13_DRIVER:
            return TorchChoice("torch", "auto", f"torch for driver {driver}")
        return TorchChoice("torch", None, "torch for CUDA")
    for requirement in (TESTED, "torch"):
        if _is_cpu_build(_dry_run(python, env, requirement)):
            return TorchChoice(requirement, None, "torch, CPU build")
    return TorchChoice("torch", "cpu", "torch, CPU build")


def has_nvidia_gpu() -> bool:
    if Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidiactl").exists():
        return True
    if shutil.which("nvidia-smi") is None:
        return False
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listing.returncode == 0 and "GPU" in listing.stdout


def driver_version() -> int | None:
    """Major version of the NVIDIA kernel driver, when it tells."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return None
    found = re.search(r"NVRM version:.*?\s(\d{3,})\.\d+", text)
    return int(found[1]) if found else None


def _dry_run(python: Path, env: Mapping[str, str], requirement: str) -> list[str] | None:
    """Requirements of the torch that pip would take, or None when it finds none."""
    command = [
        python,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--ignore-installed",
        "--no-deps",
        "--quiet",
        "--report",
        "-",
    ]
    answer = subprocess.run([*command, requirement], capture_output=True, text=True, env=env, stdin=subprocess.DEVNULL)
    if answer.returncode != 0:
        return None
    found = json.loads(answer.stdout)["install"]
    return found[0]["metadata"].get("requires_dist", []) if found else None


def _is_cpu_build(requirements: list[str] | None) -> bool:
    return requirements is not None and not any(re.match(r"(nvidia|cuda)-", name) for name in requirements)
