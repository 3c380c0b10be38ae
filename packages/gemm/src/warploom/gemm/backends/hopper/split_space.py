"""Memory for products whose tiles several blocks share: partial sums, and counters of the blocks that have come.

Counters are 0 between launches, which leave them so. Launches that may run at the same time must not share them: each
stream has its own, and each stream of a captured graph.
"""

from __future__ import annotations

import functools
import threading

import torch

__all__ = ["MOST_COUNTERS", "split_space"]

MOST_COUNTERS = 1 << 15
_lock = threading.Lock()
_of_streams: dict[tuple[int, int, int], tuple[torch.Tensor, torch.Tensor]] = {}


@functools.cache
def _spare(device: int) -> list[torch.Tensor]:
    """Zeros that a capture may take: it can't make any before its replays."""
    return []


def split_space(device: torch.device, elements: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Partial sums of so many floats, and `MOST_COUNTERS` counters, for a launch on the current stream."""
    index = device.index if device.index is not None else torch.cuda.current_device()
    stream = torch._C._cuda_getCurrentRawStream(index)
    if torch.cuda.is_current_stream_capturing():
        return _captured(device, index, stream, elements)
    key = (index, stream, 0)
    found = _of_streams.get(key)
    if not _spare(index):
        _spare(index).append(_zeros(device))
    if found is None or found[0].numel() < elements:
        partials = torch.empty(elements, dtype=torch.float32, device=device)
        with _lock:
            arrivals = found[1] if found else _zeros(device)
            found = _of_streams[key] = partials, arrivals
    return found


def _zeros(device: torch.device) -> torch.Tensor:
    return torch.zeros(MOST_COUNTERS, dtype=torch.int32, device=device)


def _captured(device: torch.device, index: int, stream: int, elements: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory of the graph for partial sums; counters that were zeroed before the capture, or are in each replay."""
    from cuda.bindings import driver

    capture = int(driver.cuStreamGetCaptureInfo(stream)[2])
    key = (index, stream, capture)
    with _lock:
        found = _of_streams.get(key)
        if found is None:
            spare = _spare(index)
            arrivals = spare.pop() if spare else _zeros(device)
            found = _of_streams[key] = torch.empty(0, dtype=torch.float32, device=device), arrivals
    return torch.empty(elements, dtype=torch.float32, device=device), found[1]
