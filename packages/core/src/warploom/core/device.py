"""Drivers, architectures and device guards. Nothing here initialises CUDA unless it is given a CUDA tensor."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
from contextlib import AbstractContextManager

import torch

from warploom.core.errors import CompileError

__all__ = ["arch_name", "arch_number", "device_guard", "device_name", "ensure_context", "has_driver", "sm_count"]

# These instruction sets have features outside the portable subset: wgmma, TMA gather, tcgen05 ...
_ARCH_SPECIFIC = {90: "sm_90a", 100: "sm_100a", 103: "sm_103a", 120: "sm_120a", 121: "sm_121a"}
_NO_GUARD: AbstractContextManager[None] = contextlib.nullcontext()
_thread = threading.local()


@functools.cache
def has_driver() -> bool:
    """Whether the NVIDIA driver library loads; asked before any call that could hang or crash without it."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@functools.cache
def _properties(index: int) -> tuple[int, str, int]:
    properties = torch.cuda.get_device_properties(index)
    return properties.major * 10 + properties.minor, properties.name, properties.multi_processor_count


def _index(device: torch.device | int) -> int:
    if isinstance(device, int):
        return device
    return torch.cuda.current_device() if device.index is None else device.index


def arch_number(device: torch.device | int) -> int:
    """Compute capability as one number, 90 for sm_90; 0 for the CPU."""
    if isinstance(device, torch.device) and device.type != "cuda":
        return 0
    return _properties(_index(device))[0]


def arch_name(device: torch.device | int) -> str:
    """Compilation target of a device with its architecture-specific features: ``sm_90a`` for an H200."""
    number = arch_number(device)
    return _ARCH_SPECIFIC.get(number, f"sm_{number}")


def device_name(device: torch.device | int) -> str:
    """The driver's name of the GPU, or ``cpu``."""
    if isinstance(device, torch.device) and device.type != "cuda":
        return device.type
    return _properties(_index(device))[1]


def sm_count(device: torch.device | int) -> int:
    """Number of streaming multiprocessors, for persistent grids; 0 for the CPU."""
    if isinstance(device, torch.device) and device.type != "cuda":
        return 0
    return _properties(_index(device))[2]


def device_guard(tensor: torch.Tensor) -> AbstractContextManager[object]:
    """Make the tensor's GPU current for a block; free when it already is, or on the CPU."""
    if not tensor.is_cuda or tensor.device.index == torch.cuda.current_device():
        return _NO_GUARD
    return torch.cuda.device(tensor.device)


def ensure_context(index: int) -> None:
    """Make the primary context of a device current in this thread.

    The driver API launches into the thread's current context, and a thread that torch has not touched yet has none.
    """
    if getattr(_thread, "device", None) == index:
        return
    from cuda.bindings import driver

    if not has_driver():
        raise CompileError("no NVIDIA driver on this machine: kernels can be compiled here but not launched")
    torch.cuda.set_device(torch.cuda.current_device())  # creates the primary context and binds it to this thread
    error, context = driver.cuCtxGetCurrent()
    if error != driver.CUresult.CUDA_SUCCESS or int(context) == 0:
        raise CompileError(f"no CUDA context in this thread ({error})")
    _thread.device = index
