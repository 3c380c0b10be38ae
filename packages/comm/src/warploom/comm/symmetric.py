"""Symmetric buffers: the same allocation on every rank, each mapped by all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from warploom.comm import cuda_memory, host_memory
from warploom.comm.topology import Topology
from warploom.comm.transports import Transport
from warploom.core.errors import ArgumentError, CommunicationError, UnsupportedError

__all__ = ["SymmetricBuffer"]

T = TypeVar("T")


class SymmetricBuffer:
    """Equally large memory on every rank of a host, reachable by all of them. Made by `Communicator.symmetric_buffer`.

    Attributes
    ----------
    nbytes : int
        Bytes on each rank.
    device : torch.device
        Where this rank's memory lies.
    pointers : tuple of int
        Address of each rank's memory, valid for kernels of this rank's GPU (or in this process, on the CPU).
    local : torch.Tensor
        This rank's memory, uint8 ``[nbytes]``. It outlives `close` as long as a tensor views it.
    """

    def __init__(self, nbytes: int, device: torch.device, transport: Transport, topology: Topology) -> None:
        if not isinstance(nbytes, int) or nbytes <= 0:
            raise ArgumentError.of("symmetric_buffer", "nbytes", "a positive number of bytes", nbytes)
        if topology.why_no_peer_memory:
            raise UnsupportedError(f"symmetric_buffer: {topology.why_no_peer_memory}")
        self.nbytes = nbytes
        self.device = device
        self._transport = transport
        self._closed = False
        self._peer_tensors: list[torch.Tensor] = []  # CPU only: they keep the mappings alive
        self._agree_on(nbytes)
        allocation: Any = self._together(self._allocate)
        self.local: torch.Tensor = allocation.tensor()[:nbytes]
        try:
            handles = self._handles(allocation)
            self.pointers: tuple[int, ...] = self._together(lambda: self._map(handles))
        finally:
            if device.type == "cpu":
                allocation.unlink()

    def tensor(self, dtype: torch.dtype, shape: Sequence[int], offset: int = 0) -> torch.Tensor:
        """View this rank's memory from byte `offset` on as a tensor.

        Raises
        ------
        ArgumentError
            The tensor does not fit, or the offset is not aligned to the dtype.
        """
        nbytes = dtype.itemsize * torch.Size(shape).numel()
        if offset < 0 or offset % dtype.itemsize or offset + nbytes > self.nbytes:
            raise ArgumentError.of(
                "SymmetricBuffer.tensor",
                "offset",
                f"aligned to {dtype.itemsize} and at most {self.nbytes - nbytes}",
                offset,
            )
        return self.local[offset : offset + nbytes].view(dtype).view(tuple(shape))

    def close(self, wait: bool = True) -> None:
        """Unmap the peers' memory. Collective unless `wait` is false; calling it again does nothing.

        Parameters
        ----------
        wait : bool
            Wait until every rank has come, so that no kernel of a peer still uses this rank's memory. Without, this
            rank's memory stays allocated until the process ends.
        """
        if self._closed:
            return
        self._closed = True
        if not wait:
            _ABANDONED.append(self)
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._transport.barrier()
        if self.device.type == "cuda":
            for rank, pointer in enumerate(self.pointers):
                if rank != self._transport.rank:
                    cuda_memory.close_peer(pointer, self.device)
        self._peer_tensors.clear()
        # CUDA wants memory unmapped everywhere before its owner frees it.
        self._transport.barrier()
        del self.local

    def _agree_on(self, nbytes: int) -> None:
        sizes = self._transport.exchange_objects(nbytes)
        if len(set(sizes)) > 1:
            raise CommunicationError(f"symmetric_buffer: ranks ask for different sizes: {dict(enumerate(sizes))}")

    def _allocate(self) -> Any:
        if self.device.type == "cuda":
            return cuda_memory.DeviceAllocation(self.nbytes, self.device)
        return host_memory.HostAllocation(self.nbytes)

    def _handles(self, allocation: Any) -> list[bytes]:
        exported: bytes = b"" if self._transport.size == 1 else self._together(allocation.handle)
        return self._transport.exchange(exported)

    def _map(self, handles: list[bytes]) -> tuple[int, ...]:
        return tuple(
            self.local.data_ptr() if rank == self._transport.rank else self._open(handle)
            for rank, handle in enumerate(handles)
        )

    def _open(self, handle: bytes) -> int:
        if self.device.type == "cuda":
            return cuda_memory.open_peer(handle, self.device)
        self._peer_tensors.append(host_memory.open_peer(handle, self.nbytes))
        return self._peer_tensors[-1].data_ptr()

    def _together(self, step: Callable[[], T]) -> T:
        """Run a step that may fail on some ranks only, and raise on all if it failed on any."""
        result: T | None = None
        problem = ""
        try:
            result = step()
        except (CommunicationError, RuntimeError, OSError) as error:
            problem = str(error)
        problems = self._transport.exchange_objects(problem)
        failed = {rank: text for rank, text in enumerate(problems) if text}
        if failed:
            raise CommunicationError(f"symmetric_buffer: {failed}")
        return result  # type: ignore[return-value]


# Buffers closed without waiting: freeing them could pull memory from under a peer's running kernel.
_ABANDONED: list[SymmetricBuffer] = []
