"""Symmetric memory where rows land that one rank writes for another."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from typing import Annotated

import torch

from warploom.comm.communicator import Communicator
from warploom.comm.topology import MAX_PEERS
from warploom.core.jit import ParamStruct, i32, i64, ptr

__all__ = ["MOST_PARTS", "MOST_PAYLOADS", "Landing", "LandingParams", "find_landing"]

_ALIGNMENT = 256
_FLAG_BYTES = 2 * 4  # of a part: calls have one of two in turn
MOST_PARTS = 8  # of a row
MOST_PAYLOADS = 8  # kMaxPayloads: tensors that share the memory for rows


class LandingParams(ParamStruct):
    """Mirror of ``Landing`` in ``include/warploom/comm/moe_direct.cuh``."""

    cpp_name = "warploom::comm::Landing"

    buffers: Annotated[ptr, MAX_PEERS]
    numbers: i64
    flags: i64
    capacity: i32
    parts: i32


class Landing:
    """A symmetric buffer with numbers of rows, flags for parts of rows, and memory for rows. Collective.

    Parameters
    ----------
    comm : Communicator
        Ranks that map one another's memory.
    capacity : int
        Most rows that a rank gets from each other one.
    row_bytes : int
        Most bytes of a row, all tensors together.

    Attributes
    ----------
    params : LandingParams
        What kernels take.
    handle : int
        Its number for operators registered with torch.
    places : torch.Tensor
        ``[capacity]``: 0, 1, 2 and so on, to compare with numbers of rows.
    """

    def __init__(self, comm: Communicator, capacity: int, row_bytes: int) -> None:
        self.capacity, self.row_bytes = capacity, row_bytes
        self._rows = _ALIGNMENT + _aligned(_FLAG_BYTES * comm.size * capacity * MOST_PARTS)
        self._size = comm.size
        nbytes = self._rows + comm.size * capacity * row_bytes + MOST_PAYLOADS * _ALIGNMENT
        self._buffer = comm.symmetric_buffer(nbytes)
        self._buffer.local[: self._rows].zero_()
        # Counted here, since what a graph captures is there only once it has run.
        self.places = torch.arange(capacity, dtype=torch.int32, device=self._buffer.local.device)
        torch.cuda.synchronize(comm.device)
        comm.barrier()  # no rank sends before all flags are down
        self.params = self.params_at(self._buffer.pointers)
        self.handle = next(_numbers)
        _landings[self.handle] = self

    def params_at(self, pointers: Sequence[int]) -> LandingParams:
        """`params` for buffers at these addresses, in rank order."""
        return LandingParams(
            buffers=[*pointers, *[None] * (MAX_PEERS - len(pointers))],
            numbers=0,
            flags=_ALIGNMENT,
            capacity=self.capacity,
            parts=MOST_PARTS,
        )

    def tensors(self, rows: int, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Views ``[size, rows, ...]`` for each of some tensors ``[tokens, ...]``, at most `MOST_PAYLOADS`."""
        views, offset = [], self._rows
        for tensor in like:
            shape = (self._size, rows, *tensor.shape[1:])
            views.append(self._buffer.tensor(tensor.dtype, shape, offset))
            offset = _aligned(offset + views[-1].nbytes)
        return views

    @property
    def rows_offset(self) -> int:
        """Where the memory for rows begins."""
        return self._rows

    def offset_of(self, tensor: torch.Tensor) -> int:
        """Where a tensor made by `tensors` begins, the same on all ranks."""
        return tensor.data_ptr() - self._buffer.local.data_ptr()

    def close(self) -> None:
        """Give the memory back. Collective."""
        self._buffer.close()


def find_landing(handle: int) -> Landing | None:
    """The one with this number; None for 0."""
    return _landings.get(handle)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


_landings: weakref.WeakValueDictionary[int, Landing] = weakref.WeakValueDictionary()
_numbers = itertools.count(1)
