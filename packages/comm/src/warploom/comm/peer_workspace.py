"""The mailboxes of the peer-memory kernels: one symmetric buffer a communicator, and the report that they leave.

``include/warploom/comm/call.cuh`` holds the layout and the protocol.
"""

from __future__ import annotations

from typing import Annotated

import torch

from warploom.comm.symmetric import SymmetricBuffer
from warploom.comm.topology import MAX_PEERS
from warploom.core.errors import CommunicationError
from warploom.core.jit import ParamStruct, i32, i64, ptr, u64

__all__ = ["CHUNK_BYTES", "HEADER_BYTES", "MAX_BLOCKS", "SLOTS", "STAGING_BYTES", "Mailboxes", "PeerWorkspace"]

HEADER_BYTES = 1024  # kHeaderBytes
MAX_BLOCKS = 64  # kMaxBlocks
_EMPTY = 0xFF  # every byte of kEmpty

# Of exchange.cuh: rings of slots, one for each channel, behind the mailboxes.
CHUNK_BYTES = 4096
SLOTS = 4
_MAX_CHANNELS = 512  # kMaxChannels
_COUNTERS_BYTES = 4 * 32  # kCounters * kCounterBytes
STAGING_BYTES = _MAX_CHANNELS * (_COUNTERS_BYTES + SLOTS * CHUNK_BYTES)  # 8 MiB and a little

_ELEMENTS = ("", "float32", "float16", "bfloat16")  # kElement of message.cuh
_OPERATIONS = {
    1: "all_reduce (oneshot)",
    2: "all_reduce (twoshot)",
    3: "reduce_scatter (oneshot)",
    4: "all_gather (oneshot)",
    5: "allreduce_fusion (oneshot)",
    6: "allreduce_fusion (twoshot)",
    7: "moe_dispatch (oneshot)",
    8: "moe_combine (oneshot)",
    9: "all_to_all or all_gather (exchange)",
    10: "moe_dispatch (direct)",
    11: "moe_combine (direct)",
}  # Operation of call.cuh


class Mailboxes(ParamStruct):
    """What every kernel over mailboxes is given."""

    cpp_name = "warploom::comm::Mailboxes"

    buffers: Annotated[ptr, MAX_PEERS]
    report: ptr
    timeout_ns: u64
    half_bytes: i64
    rank: i32


class PeerWorkspace:
    """Mailboxes in a symmetric buffer of a GPU communicator.

    Parameters
    ----------
    buffer : SymmetricBuffer
        A header, two halves of packets, and `STAGING_BYTES` for what is no packet.
    rank : int
        This rank.
    timeout : float
        Seconds that a kernel waits for a peer's data.

    Attributes
    ----------
    half_bytes : int
        Bytes that one call may use: consecutive calls alternate between the halves.
    arguments : Mailboxes
        Packed once; kernels take it beside their own parameters.
    """

    def __init__(self, buffer: SymmetricBuffer, rank: int, timeout: float) -> None:
        self.half_bytes = self.half_of(buffer.nbytes - STAGING_BYTES)
        self._rank = rank
        self._timeout = timeout
        self._buffer = buffer
        self._stream: torch.cuda.Stream | None = None
        # Kernels write the report over the bus and the host reads it without a synchronisation.
        self._report = torch.zeros(10, dtype=torch.int32, pin_memory=True)
        self._fields = self._report.numpy()
        self._words = self._fields.view("uint64")
        buffer.local[:HEADER_BYTES].zero_()
        buffer.local[HEADER_BYTES : HEADER_BYTES + 2 * self.half_bytes].fill_(_EMPTY)
        buffer.local[HEADER_BYTES + 2 * self.half_bytes :].zero_()  # counts of chunks
        torch.cuda.synchronize(buffer.device)
        self.arguments = Mailboxes(
            buffers=[*buffer.pointers, *[None] * (MAX_PEERS - len(buffer.pointers))],
            report=self._report.data_ptr(),
            timeout_ns=int(timeout * 1e9),
            half_bytes=self.half_bytes,
            rank=rank,
        )

    @staticmethod
    def half_of(nbytes: int) -> int:
        """Bytes of one half in `nbytes` of header and mailboxes; a multiple of 256."""
        return max(0, (nbytes - HEADER_BYTES) // 2 // 256 * 256)

    def check(self) -> None:
        """Raise if a kernel has reported a failure so far. Reads host memory; synchronises nothing."""
        if not self._fields[0]:
            return
        _, call, peer, stage, aborted_by = self._fields[:5].tolist()
        own, others = (_terms(int(word), call) for word in self._words[3:5])
        what = f"rank {self._rank}: {own[0]}, call {call + 1} over peer memory"
        if others:
            problem = f"ranks disagree: this one called {' '.join(own)}, rank {peer} called {' '.join(others)}"
        else:
            end = f"when rank {aborted_by - 1} gave up" if aborted_by else f"for {self._timeout:g} s"
            problem = f"waited for data of rank {peer} (stage {stage}) {end}"
        raise CommunicationError(
            f"{what}: {problem}. Outputs from this call on are not valid: close the communicator and make a new one."
        )

    def follow_stream(self) -> None:
        """Order this call after the communicator's earlier ones if they went to another stream.

        Mailboxes serve one call at a time. Within a CUDA graph the graph's own edges must give the order: a wait for
        work outside the capture is not allowed there.
        """
        if self._stream is not None:
            raw = torch._C._cuda_getCurrentRawStream(self._buffer.device.index)
            if raw == self._stream.cuda_stream:
                return
        if torch.cuda.is_current_stream_capturing():
            return
        current = torch.cuda.current_stream(self._buffer.device)
        if self._stream is not None:
            current.wait_event(self._stream.record_event())
        self._stream = current


def _terms(word: int, call: int) -> tuple[str, ...]:
    """What a rank called, from the word that its peers get (`Terms` of call.cuh); empty if it is not of this call."""
    if word >> 48 != (call + 1) & 0xFFFF:
        return ()
    operation, element, count = word >> 40 & 0xFF, word >> 32 & 0xFF, word & 0xFFFFFFFF
    return _OPERATIONS.get(operation, "a kernel"), f"of size {count}", *([_ELEMENTS[element]] if element else [])
