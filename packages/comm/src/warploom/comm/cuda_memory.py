"""CUDA allocations that other processes map, through CUDA IPC.

Symmetric buffers come from cudaMalloc and not from torch's allocator: a handle names a whole allocation, and torch cuts
its allocations into pieces and reuses them.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import torch

from warploom.core.device import ensure_context
from warploom.core.errors import CommunicationError

__all__ = ["DeviceAllocation", "bus_id", "close_peer", "open_peer", "reaches"]

# Smaller allocations may share a block with others, and a handle exposes the whole block.
_GRANULARITY = 2 << 20


def _runtime() -> Any:
    from cuda.bindings import runtime

    return runtime


def _check(result: tuple[Any, ...], what: str) -> Any:
    status, *values = result
    if int(status) != 0:
        raise CommunicationError(f"{what}: {getattr(status, 'name', status)}")
    return values[0] if values else None


@contextlib.contextmanager
def _current(device: torch.device) -> Iterator[Any]:
    """The CUDA runtime with `device` current."""
    runtime = _runtime()
    index = torch.cuda.current_device() if device.index is None else device.index
    with torch.cuda.device(index):
        ensure_context(index)
        _check(runtime.cudaSetDevice(index), f"making cuda:{index} current")
        yield runtime


class DeviceAllocation:
    """Bytes of GPU memory that other processes can map. Freed when no tensor views it any more.

    Parameters
    ----------
    nbytes : int
        Size; rounded up to 2 MiB.
    device : torch.device
        The GPU.
    """

    def __init__(self, nbytes: int, device: torch.device) -> None:
        self.nbytes = max(_GRANULARITY, -(-nbytes // _GRANULARITY) * _GRANULARITY)
        self.device = device
        with _current(device) as runtime:
            self.pointer = int(_check(runtime.cudaMalloc(self.nbytes), f"allocating {self.nbytes} bytes on {device}"))
        finalizer = weakref.finalize(self, runtime.cudaFree, self.pointer)
        finalizer.atexit = False  # the process's end frees it, and the driver may be gone by then
        # torch keeps the object that offers this interface alive as long as a tensor views the memory.
        self.__cuda_array_interface__ = {
            "shape": (self.nbytes,), "typestr": "|u1", "data": (self.pointer, False), "version": 3,
        }  # fmt: skip

    def tensor(self) -> torch.Tensor:
        """The bytes as a uint8 tensor."""
        return torch.as_tensor(self, device=self.device)

    def handle(self) -> bytes:
        """What another process needs to map the allocation."""
        with _current(self.device) as runtime:
            return bytes(_check(runtime.cudaIpcGetMemHandle(self.pointer), "exporting GPU memory").reserved)


def open_peer(handle: bytes, device: torch.device) -> int:
    """Map another process's allocation; returns its address for kernels on `device`."""
    with _current(device) as runtime:
        opaque = runtime.cudaIpcMemHandle_t()
        opaque.reserved = handle
        flags = runtime.cudaIpcMemLazyEnablePeerAccess
        return int(_check(runtime.cudaIpcOpenMemHandle(opaque, flags), f"mapping a peer's GPU memory on {device}"))


def close_peer(pointer: int, device: torch.device) -> None:
    """Undo `open_peer`."""
    with _current(device) as runtime:
        _check(runtime.cudaIpcCloseMemHandle(pointer), "unmapping a peer's GPU memory")


def bus_id(device: torch.device) -> str:
    """The PCI bus id, which names a GPU the same way in every process."""
    with _current(device) as runtime:
        text = _check(runtime.cudaDeviceGetPCIBusId(32, device.index), "PCI bus id")
    return bytes(text).split(b"\0")[0].decode()


def reaches(device: torch.device, peer_bus_id: str) -> bool:
    """Whether kernels on `device` can use memory of the GPU with this bus id."""
    with _current(device) as runtime:
        if bus_id(device) == peer_bus_id:
            return True
        status, peer = runtime.cudaDeviceGetByPCIBusId(peer_bus_id.encode())
        if int(status) != 0:  # CUDA_VISIBLE_DEVICES hides it from this process; mapping its memory will tell
            return True
        return bool(_check(runtime.cudaDeviceCanAccessPeer(device.index, peer), "peer access"))
