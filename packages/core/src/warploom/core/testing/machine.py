"""What the machine under the tests has."""

from __future__ import annotations

import torch


def why_no_gpu(count: int = 1, min_arch: int = 0, arch: int = 0) -> str:
    """Return why a test that needs `count` GPUs of compute capability `min_arch` (e.g. 90) cannot run; "" when it can.

    A test of instructions that later GPUs do not have names the one `arch` that it runs on.

    Creates no CUDA context.
    """
    if not torch.cuda.is_available():
        return "needs an NVIDIA GPU and a torch built for CUDA"
    found = torch.cuda.device_count()
    if found < count:
        return f"needs {count} GPUs, found {found}"
    major, minor = torch.cuda.get_device_capability(0)
    found = major * 10 + minor
    if found < min_arch or (arch and found != arch):
        return f"needs compute capability {arch or min_arch}, found {found}"
    return ""


def gpu_available(count: int = 1, min_arch: int = 0) -> bool:
    """Return whether `count` GPUs of at least compute capability `min_arch` are there.

    Examples
    --------
    >>> gpu_available() == torch.cuda.is_available()
    True
    """
    return not why_no_gpu(count, min_arch)
