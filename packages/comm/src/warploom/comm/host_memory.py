"""Memory that processes of one host share, the CPU's counterpart of `cuda_memory`."""

from __future__ import annotations

import mmap
import os
import tempfile

import torch

from warploom.core.errors import CommunicationError

__all__ = ["HostAllocation", "open_peer"]

_FOLDER = "/dev/shm" if os.path.isdir("/dev/shm") else None


class HostAllocation:
    """Bytes of shared memory behind a file that exists only until the peers have opened it.

    Parameters
    ----------
    nbytes : int
        Size.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = max(nbytes, 1)
        descriptor, self.path = tempfile.mkstemp(prefix="warploom-", dir=_FOLDER)
        try:
            os.posix_fallocate(descriptor, 0, self.nbytes)  # a full /dev/shm shows here and not as a bus error later
            self._map = mmap.mmap(descriptor, self.nbytes)
        except OSError as error:
            self.unlink()
            raise CommunicationError(f"allocating {self.nbytes} bytes of shared memory: {error}") from error
        finally:
            os.close(descriptor)

    def tensor(self) -> torch.Tensor:
        """The bytes as a uint8 tensor, which keeps the mapping alive."""
        return torch.frombuffer(self._map, dtype=torch.uint8)

    def handle(self) -> bytes:
        """What another process needs to map the memory."""
        return self.path.encode()

    def unlink(self) -> None:
        """Remove the file; mappings stay valid."""
        if os.path.exists(self.path):
            os.unlink(self.path)


def open_peer(handle: bytes, nbytes: int) -> torch.Tensor:
    """Map another process's allocation as a uint8 tensor."""
    try:
        with open(handle.decode(), "r+b") as file:
            return torch.frombuffer(mmap.mmap(file.fileno(), nbytes), dtype=torch.uint8)
    except (OSError, ValueError) as error:
        raise CommunicationError(f"mapping a peer's shared memory: {error}") from error
