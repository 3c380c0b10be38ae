"""How kernels divide rows among thread blocks, and the launch of such a kernel."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch

from warploom.core.jit import KernelSpec, ParamStruct

__all__ = [
    "CANDIDATE_BYTES",
    "LARGEST_VOCAB",
    "ROW_THREADS",
    "STREAM_BYTES",
    "RowShape",
    "largest_cluster",
    "largest_shared_bytes",
    "launch_rows",
    "row_shape",
    "selection_blocks",
    "selection_shape",
    "stream_parts",
    "stream_threads",
    "vocab_fits",
]

ROW_THREADS = 256  # of a block
CANDIDATE_BYTES = 20672  # `CandidateScratch`, where the share of the row was
STREAM_BYTES = 3 * 4 * 16  # of shared memory for each thread of a block that streams a row: row_stream.cuh
LARGEST_VOCAB = 2**20

_TILE_BYTES = 4096  # of a row that a block takes in turn with the others: `kTileGroups` of 16 in row_share.cuh
_SPREAD_TILES = 4  # at least, where more blocks take a row than need to
_SHARE_BYTES = 64 * 1024  # three blocks an SM keep theirs and what else they need
_LARGEST_SHARE_BYTES = 192 * 1024  # one block an SM
_OTHER_BYTES = 16 * 1024  # static shared memory of a block, at most
_PORTABLE_CLUSTER = 8
_LARGEST_CLUSTER = {90: 16, 100: 16, 103: 16}  # data-centre parts have the SMs for it; others keep to the portable 8


def vocab_fits(vocab: int) -> tuple[bool, str]:
    """Whether the kernels take rows of so many tokens, as `Support.of` wants it."""
    return vocab <= LARGEST_VOCAB, f"vocab {vocab} is over 2**20"


def launch_rows(
    spec: KernelSpec,
    params: ParamStruct,
    device: torch.device,
    *,
    rows: int,
    parts: int,
    threads: int = ROW_THREADS,
    smem: int = 0,
    pdl: bool = False,
) -> None:
    """Launch a kernel with `parts` blocks for each row: a cluster, if more than one."""
    cluster = parts if parts > 1 else None
    spec.load(device).launch(rows * parts, threads, params, smem=smem, cluster=cluster, pdl=pdl)


def largest_cluster(arch: int) -> int:
    """Blocks that can share a row.

    Examples
    --------
    >>> largest_cluster(90), largest_cluster(80)
    (16, 1)
    """
    return _LARGEST_CLUSTER.get(arch, _PORTABLE_CLUSTER) if arch >= 90 else 1


def largest_shared_bytes(arch: int) -> int:
    """Shared memory that a block can have beside its static part.

    Examples
    --------
    >>> [largest_shared_bytes(arch) // 1024 for arch in (80, 86, 90, 120)]
    [147, 83, 211, 83]
    """
    kilobytes = {80: 163, 87: 163, 90: 227, 100: 227, 103: 227}.get(arch, 99)
    return kilobytes * 1024 - _OTHER_BYTES


class RowShape(NamedTuple):
    """Blocks that share a row (a cluster if more than one), whether they keep it, and the shared memory each needs."""

    parts: int
    resident: bool
    share_bytes: int


@functools.lru_cache(1024)
def row_shape(batch: int, vocab: int, itemsize: int, arch: int, sms: int) -> RowShape:
    """Blocks of `ROW_THREADS` threads that keep a row in shared memory.

    The fewest, without taking a whole SM each; more where there are few rows.

    Examples
    --------
    >>> row_shape(64, 128256, 4, arch=90, sms=132)
    RowShape(parts=8, resident=True, share_bytes=65536)
    >>> row_shape(1, 128256, 4, arch=90, sms=132)
    RowShape(parts=16, resident=True, share_bytes=32768)
    >>> row_shape(1, 1000, 4, arch=90, sms=132)
    RowShape(parts=1, resident=True, share_bytes=4096)
    >>> row_shape(1, 128256, 4, arch=80, sms=132)
    RowShape(parts=1, resident=False, share_bytes=0)
    """
    tiles = math.ceil(vocab * itemsize / _TILE_BYTES)
    most = largest_cluster(arch)
    parts = 1
    while parts < most and math.ceil(tiles / parts) * _TILE_BYTES > _SHARE_BYTES:
        parts *= 2
    while parts < most and 2 * parts * batch <= 2 * sms and tiles >= 2 * parts * _SPREAD_TILES:
        parts *= 2
    share_bytes = math.ceil(tiles / parts) * _TILE_BYTES
    limit = min(_LARGEST_SHARE_BYTES, largest_shared_bytes(arch)) if arch >= 90 else _SHARE_BYTES
    return RowShape(parts, True, share_bytes) if share_bytes <= limit else RowShape(parts, False, 0)


def stream_threads(itemsize: int) -> int:
    """Threads of a block that streams a row, two blocks an SM; 16-bit values take more registers."""
    return 512 if itemsize == 4 else 320


def selection_blocks(itemsize: int, resident: bool) -> int:
    """Blocks an SM of kernels launched by `selection_shape`; 16-bit values take more registers."""
    return 4 if itemsize == 4 and not resident else 3


@functools.lru_cache(1024)
def stream_parts(
    batch: int, vocab: int, itemsize: int, arch: int, sms: int, blocks_per_sm: int = 2, end: float = 2.5
) -> int:
    """Blocks that read a row once: those that end soonest, as rows of whole waves go.

    Parameters
    ----------
    batch, vocab, itemsize, arch, sms : int
        Rows, their tokens and the bytes of each; architecture and multiprocessors of the GPU.
    blocks_per_sm : int
        That run at the same time.
    end : float
        Microseconds between a block's last read and its end.

    Examples
    --------
    >>> [stream_parts(batch, 128256, 4, arch=90, sms=132) for batch in (1, 64, 512)]
    [16, 2, 1]
    """
    row_bytes = vocab * itemsize

    def cost(parts: int) -> float:
        """Roughly microseconds: waves of blocks, each at its share of the memory's rate, and the end of each."""
        blocks = batch * parts
        slots = int(sms * blocks_per_sm * (1.0 if parts == 1 else 0.9))  # clusters leave some SMs without one
        rate = min(32e3, 4.2e6 / min(blocks, slots))  # bytes a microsecond: one block by itself, its share of all
        return math.ceil(blocks / slots) * (row_bytes / parts / rate + end)

    choices = [parts for parts in (1, 2, 4, 8, 16) if parts <= largest_cluster(arch)]
    return min(choices, key=lambda parts: (cost(parts), parts))


def selection_shape(batch: int, vocab: int, itemsize: int, arch: int, sms: int) -> RowShape:
    """Blocks that look at all of a row once, and then at few tokens of it.

    Rows of small batches are kept on chip. Of large ones fewer blocks read a row, and read again what they need: there
    are enough rows to hide that behind.

    Examples
    --------
    >>> selection_shape(1, 128256, 4, arch=90, sms=132)
    RowShape(parts=8, resident=True, share_bytes=65536)
    >>> selection_shape(512, 128256, 4, arch=90, sms=132)
    RowShape(parts=1, resident=False, share_bytes=0)
    """
    held = row_shape(sms, vocab, itemsize, arch, sms)  # more blocks a row gain nothing
    if batch * held.parts <= 2 * sms:
        return held
    return RowShape(
        stream_parts(batch, vocab, itemsize, arch, sms, selection_blocks(itemsize, False), end=8.0), False, 0
    )
