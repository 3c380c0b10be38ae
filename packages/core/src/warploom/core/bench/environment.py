"""What a result belongs to: GPU, driver, versions, commit."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path

import torch

from warploom.core.device import device_name

__all__ = ["commit_of", "describe_environment", "pick_device"]

# Distributions whose version can change a result; those that are not installed are left out.
_PACKAGES = ("warploom-core", "triton", "cuda-bindings", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12", "nvidia-nccl-cu13",
             "nvidia-nccl-cu12", "flashinfer-python", "flash-attn", "deep-gemm", "mpi4py")  # fmt: skip


def describe_environment(device: torch.device, commit: str = "") -> dict[str, str]:
    """Return names and versions, in the order in which reports print them.

    Parameters
    ----------
    commit : str
        Use this instead of asking git, for copies of the tree that have no repository.
    """
    found = {
        "device": _processor() if device.type == "cpu" else device_name(device),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "commit": commit or commit_of(Path.cwd()),
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a subclass of str, which YAML refuses
    }
    if device.type == "cuda":
        found["cuda"] = str(torch.version.cuda)
        found["driver"] = _driver_version()
        found["gpus"] = str(torch.cuda.device_count())
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def pick_device(name: str = "", rank: int = 0) -> torch.device:
    """Return the device of a name, by default a rank's own GPU or, without one, the CPU; a GPU has its index."""
    device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", rank % max(1, torch.cuda.device_count()))
    return device


def commit_of(folder: Path) -> str:
    """Return the short commit of the repository around `folder`, with a mark for changed files; "unknown" outside."""
    try:
        commit = _git(folder, "rev-parse", "--short=10", "HEAD")
        return f"{commit}+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _processor() -> str:
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def _driver_version() -> str:
    """The driver's supported CUDA version; the NVML package that knows the release number is not a dependency."""
    from cuda.bindings import driver

    status, version = driver.cuDriverGetVersion()
    return f"CUDA {version // 1000}.{version % 1000 // 10}" if int(status) == 0 else "unknown"
