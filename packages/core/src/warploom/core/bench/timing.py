"""Timing on the GPU and on the CPU.

GPU method
----------
Each sample is: flush the L2, record an event, replay a CUDA graph that holds the call, record an event. The flush
*reads* a buffer of four times the L2, so that the lines it leaves behind are clean and no contender pays for writing
them back. It lasts longer than the host needs to enqueue what follows; the device therefore never waits for the host
between the two events, and a sample is device time alone. Contenders take turns in rounds, so that a change of clocks
or temperature meets all of them. Reported are the median and the 10th and 90th percentile.

A call that can't be captured (it synchronises, or allocates in a way a graph can't) is enqueued directly; the flush is
then repeated until it outlasts twice the call's host time, so the sample still is device time. What remains in every
sample is the launch of an empty graph between two events, some microseconds: it is measured as `Ceilings.launch_us`,
printed with the results, and never subtracted.

With ``calls > 1`` the graph holds that many calls and the time is divided by it. That is for collectives: the spread of
the ranks' starting times falls on the first call alone.
"""

from __future__ import annotations

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from warploom.core.bench.ranks import Ranks

__all__ = ["CpuTimer", "GpuTimer", "Timer", "Timing", "host_time_us", "make_timer"]

_ROUNDS = 5
_MIN_SAMPLES, _MAX_SAMPLES = 10, 500
_QUEUE = 50  # samples enqueued before a synchronisation: below the depth at which the driver's launch queue blocks

Call = Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call: median, 10th and 90th percentile over the samples, and host time.

    `mode` is ``"graph"``, ``"eager"`` or ``"wall"`` (the CPU's clock). Host time is always that of a direct call.
    """

    us: float
    p10: float
    p90: float
    samples: int
    mode: str
    host_us: float

    @classmethod
    def of(cls, samples: Sequence[float], mode: str, host_us: float) -> Timing:
        ordered = sorted(samples)
        last = len(ordered) - 1
        return cls(statistics.median(ordered), ordered[round(0.1 * last)], ordered[round(0.9 * last)],
                   len(ordered), mode, host_us)  # fmt: skip


def host_time_us(call: Call, *, device: torch.device | str = "cpu", calls: int = 20, batches: int = 7) -> float:
    """Return the host time of one call: how long Python and the driver take to enqueue it.

    Each batch of `calls` runs after a synchronisation, so that a full launch queue never blocks; the median batch
    counts. On the CPU it is simply the call's duration.

    Examples
    --------
    >>> host_time_us(lambda: None) < 100
    True
    """
    device = torch.device(device)
    times = []
    call()
    for _ in range(batches):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        for _ in range(calls):
            call()
        times.append((time.perf_counter() - start) / calls * 1e6)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return statistics.median(times)


class Timer(ABC):
    """Times several calls against one another.

    Attributes
    ----------
    ranks : Ranks
        With several, all take the same number of samples and a time is that of the slowest rank.
    """

    ranks = Ranks()

    @abstractmethod
    def time(self, contenders: Mapping[str, Call], *, calls: int = 1, flush: bool = True) -> dict[str, Timing]:
        """Return a `Timing` for each contender; they take turns."""


def make_timer(device: torch.device, *, graph: bool = True, budget_s: float = 0.3, ranks: Ranks | None = None) -> Timer:
    """Return the timer of a device.

    Parameters
    ----------
    graph : bool
        Capture calls in CUDA graphs where that works.
    budget_s : float
        Seconds of measuring per contender.
    """
    if device.type == "cuda":
        return GpuTimer(device, graph=graph, budget_s=budget_s, ranks=ranks or Ranks())
    return CpuTimer(budget_s)


class CpuTimer(Timer):
    """Wall-clock time, for smoke tests and host-side code."""

    def __init__(self, budget_s: float = 0.3) -> None:
        self._budget_s = budget_s

    def time(self, contenders: Mapping[str, Call], *, calls: int = 1, flush: bool = True) -> dict[str, Timing]:
        samples: dict[str, list[float]] = {name: [] for name in contenders}
        counts = {}
        for name, call in contenders.items():
            call()  # warm-up: caches, lazy initialisation
            counts[name] = max(1, min(_MAX_SAMPLES, int(self._budget_s / max(_seconds(call), 1e-7))) // _ROUNDS)
        for _ in range(_ROUNDS):
            for name, call in contenders.items():
                samples[name] += [_seconds(call) * 1e6 for _ in range(counts[name])]
        return {name: Timing.of(taken, "wall", statistics.median(taken)) for name, taken in samples.items()}


def _seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@dataclass(frozen=True)
class _Contender:
    replay: Call
    mode: str
    host_us: float
    flushes: int


class GpuTimer(Timer):
    """Device time by CUDA events; the module docstring says how.

    Parameters
    ----------
    device : torch.device
    graph : bool
        Capture calls in CUDA graphs where that works.
    budget_s : float
        Seconds of measuring per contender.
    """

    def __init__(self, device: torch.device, *, graph: bool = True, budget_s: float = 0.3, ranks: Ranks) -> None:
        self._device, self._graph, self._budget_s, self.ranks = device, graph, budget_s, ranks
        torch.cuda.set_device(device)
        l2_bytes = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 128 << 20)
        buffer = torch.zeros(l2_bytes, dtype=torch.float32, device=device)  # four bytes an element: four times the L2
        self._flush = self._capture(lambda: buffer.amax(), 1)
        self._flush_us = statistics.median(self._sample(_Contender(self._flush, "graph", 0.0, 0), 20))

    def time(self, contenders: Mapping[str, Call], *, calls: int = 1, flush: bool = True) -> dict[str, Timing]:
        prepared = {name: self._prepare(call, calls, flush) for name, call in contenders.items()}
        counts = {name: self._count(contender) for name, contender in prepared.items()}
        samples: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(_ROUNDS):
            for name, contender in prepared.items():
                samples[name] += [us / calls for us in self._sample(contender, counts[name])]
        return {name: self._timing(samples[name], contender) for name, contender in prepared.items()}

    def _timing(self, samples: Sequence[float], contender: _Contender) -> Timing:
        timing = Timing.of(samples, contender.mode, contender.host_us)
        slowest = self.ranks.max
        return Timing(slowest(timing.us), slowest(timing.p10), slowest(timing.p90), timing.samples, timing.mode,
                      slowest(timing.host_us))  # fmt: skip

    def _prepare(self, call: Call, calls: int, flush: bool) -> _Contender:
        host_us = host_time_us(call, device=self._device, calls=10, batches=5)
        graph = self._try_capture(call, calls) if self._graph else None
        if self.ranks.max(float(graph is None)) == 0.0 and graph is not None:
            return _Contender(graph, "graph", host_us, int(flush))

        def direct() -> None:
            for _ in range(calls):
                call()

        outlast = int(2 * host_us * calls / self._flush_us) + 1
        return _Contender(direct, "eager", host_us, outlast if flush else 0)

    def _try_capture(self, call: Call, calls: int) -> Call | None:
        """`_capture`, or None for a call that does what a graph can't hold."""
        stream = torch.cuda.current_stream(self._device)
        try:
            return self._capture(call, calls)
        except Exception:
            # A capture that breaks off leaves torch on the capture's stream, and its random numbers "capturing".
            torch.cuda.set_stream(stream)
            torch.cuda.synchronize(self._device)
            generator = torch.cuda.default_generators[stream.device.index]
            generator.graphsafe_set_state(generator.clone_state())
            return None

    def _capture(self, call: Call, calls: int) -> Call:
        """Return the replay of a graph that holds `calls` calls."""
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(3):  # lazy initialisation, autotuning and module loading must not happen in the capture
                call()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            held = [call() for _ in range(calls)]

        def replay() -> None:
            graph.replay()

        replay.keeps = (call, held)  # type: ignore[attr-defined]  # the tensors that the graph reads and writes
        return replay

    def _count(self, contender: _Contender) -> int:
        """Samples per round that fit the budget, the same on all ranks."""
        self._sample(contender, 5)  # warm-up
        start = time.perf_counter()
        self._sample(contender, 5)
        seconds = self.ranks.max((time.perf_counter() - start) / 5)
        wanted = int(self._budget_s / max(seconds, 1e-7))
        return max(_MIN_SAMPLES, min(_MAX_SAMPLES, wanted)) // _ROUNDS

    def _sample(self, contender: _Contender, count: int) -> list[float]:
        """Time `count` runs; the device is kept busy, so the host is never between the events."""
        times: list[float] = []
        while count > 0:
            batch = min(count, _QUEUE)
            count -= batch
            self.ranks.barrier()
            starts = [torch.cuda.Event(enable_timing=True) for _ in range(batch)]
            ends = [torch.cuda.Event(enable_timing=True) for _ in range(batch)]
            for start, end in zip(starts, ends, strict=True):
                for _ in range(contender.flushes):
                    self._flush()
                start.record()
                contender.replay()
                end.record()
            torch.cuda.synchronize(self._device)
            times += [start.elapsed_time(end) * 1e3 for start, end in zip(starts, ends, strict=True)]
        return times
