"""MPI through mpi4py, with nonblocking calls only, so that every wait has an end."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from warploom.comm.transports.base import Transport
from warploom.core.errors import ArgumentError, CommunicationError, UnsupportedError

__all__ = ["MpiTransport"]

_EXCHANGE_TAG = 17
_LARGEST_MESSAGE = 2**31 - 1  # bytes; MPI before version 4 counts in C ints


class MpiTransport(Transport):
    """Moves CPU tensors over a duplicate of an MPI communicator, so that no message meets one of the user's.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm, optional
        The ranks; default ``MPI.COMM_WORLD``.
    timeout : float
        Seconds to wait for a peer.
    """

    name = "mpi"

    def __init__(self, comm: Any, timeout: float) -> None:
        try:
            from mpi4py import MPI
        except ImportError as error:
            raise CommunicationError(
                "Communicator.from_mpi needs mpi4py and an MPI library: pip install 'warploom-comm[mpi]' mpich"
            ) from error
        parent = MPI.COMM_WORLD if comm is None else comm
        if not isinstance(parent, MPI.Intracomm) or parent == MPI.COMM_NULL:
            raise ArgumentError.of("Communicator.from_mpi", "comm", "an mpi4py intracommunicator", type(comm).__name__)
        self._mpi = MPI
        self.timeout = timeout
        self.rank, self.size = parent.Get_rank(), parent.Get_size()
        self._peers = [rank for rank in range(self.size) if rank != self.rank]
        self.activity = "Communicator.from_mpi"
        self._comm, request = parent.Idup()
        self._finish(request)

    def exchange(self, payload: bytes) -> list[bytes]:
        # Point to point rather than MPI_Allgather: on a timeout it is known who did not come.
        byte = self._mpi.BYTE
        received = {self.rank: payload}

        def receive() -> bool:
            for peer in self._peers:
                if peer in received:
                    continue
                status = self._mpi.Status()
                message = self._comm.Improbe(source=peer, tag=_EXCHANGE_TAG, status=status)
                if message is not None:
                    buffer = bytearray(status.Get_count(byte))
                    message.Recv([buffer, byte])
                    received[peer] = bytes(buffer)
            return len(received) == self.size

        sends = [self._comm.Isend([payload, byte], dest=peer, tag=_EXCHANGE_TAG) for peer in self._peers]
        self._wait(receive, lambda: [peer for peer in self._peers if peer not in received])
        self._wait(lambda: all(send.Test() for send in sends), lambda: self._peers)
        return [received[rank] for rank in range(self.size)]

    def all_gather(self, out: torch.Tensor, x: torch.Tensor) -> None:
        self._check_sizes(out, x)
        byte = self._mpi.BYTE
        self._finish(self._comm.Iallgather([x.numpy(), byte], [out.numpy(), byte]))

    def all_to_all(
        self, out: torch.Tensor, x: torch.Tensor, out_counts: Sequence[int], in_counts: Sequence[int]
    ) -> None:
        self._check_sizes(out, x)
        byte = self._mpi.BYTE
        send = [x.numpy(), (list(in_counts), _offsets(in_counts)), byte]
        receive = [out.numpy(), (list(out_counts), _offsets(out_counts)), byte]
        self._finish(self._comm.Ialltoallv(send, receive))

    def close(self) -> None:
        if not self.failure:  # a communicator with messages under way can't be freed
            self._comm.Free()

    def _check_sizes(self, *tensors: torch.Tensor) -> None:
        largest = max(tensor.numel() for tensor in tensors)
        if largest > _LARGEST_MESSAGE:
            raise UnsupportedError(f"{self.activity}: MPI moves at most {_LARGEST_MESSAGE} bytes a call, got {largest}")

    def _finish(self, request: Any) -> None:
        self._wait(request.Test, lambda: self._peers)

    def _wait(self, done: Callable[[], bool], missing: Callable[[], list[int]]) -> None:
        """Poll until `done`; after the timeout raise an error that names the ranks of `missing`."""
        start = time.monotonic()
        try:
            while not done():
                waited = time.monotonic() - start
                if waited > self.timeout:
                    ranks = ", ".join(map(str, missing()))
                    self.fail(
                        f"waited {waited:.1f} s for rank {ranks}. Each rank must make the same calls in the same order."
                    )
                # Ranks may outnumber cores: give the core away at once, and sleep when the peer is far behind.
                time.sleep(0 if waited < 1e-3 else 5e-5 if waited < 0.1 else 1e-3)
        except self._mpi.Exception as error:
            self.fail(f"MPI: {error}")


def _offsets(counts: Sequence[int]) -> list[int]:
    return [0, *itertools.accumulate(counts)][:-1]
