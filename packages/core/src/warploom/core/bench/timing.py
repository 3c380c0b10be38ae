"""Timing on the GPU and on the CPU.

GPU method
----------
Each sample is: flush the L2, record an event, replay a CUDA graph that holds the call, record an event. The flush
*reads* a buffer of four times the L2, so that the lines it leaves behind are clean and no contender pays for writing
them back. It lasts longer than the host needs to enqueue what follows; the device therefore never waits for the host
between the two events, and a sample is device time alone. Contenders take turns in rounds, so that a change of clocks
or temperature meets all of them, in another order each time: what follows a contender that draws little power finds a
higher clock. Reported are the median and the 10th and 90th percentile.

A call that can't be captured (it synchronises, or allocates in a way a graph can't) is enqueued directly; the flush is
then repeated until it outlasts twice the call's host time, so the sample still is device time. What remains in every
sample is the launch of an empty graph between two events, some microseconds: it is measured as `Ceilings.launch_us`,
printed with the results, and never subtracted.

With ``calls > 1`` the graph holds that many calls and the time is divided by it. That is for collectives: the spread of
the ranks' starting times falls on the first call alone.

What a program without graphs sees is measured apart from the samples: direct calls one after the other, without a
flush, between two events. Their time is the host's where launching takes longer than computing, else the device's, with
what the L2 keeps from call to call.
"""

from __future__ import annotations

import random
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from warploom.core.bench.ranks import Ranks

__all__ = ["CpuTimer", "GpuTimer", "Timer", "Timing", "direct_times_us", "host_time_us", "make_timer"]

_ROUNDS = 7
_MIN_SAMPLES, _MAX_SAMPLES = 14, 500
_DIRECT_BATCHES, _MAX_DIRECT_CALLS = 5, 20
_QUEUE = 50  # samples enqueued before a synchronisation: below the depth at which the driver's launch queue blocks

Call = Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call: median, 10th and 90th percentile over the samples, and what direct calls cost.

    `mode` is ``"graph"``, ``"eager"`` or ``"wall"`` (the CPU's clock). `host_us` is the host's time for a direct call,
    `eager_us` the time from one direct call to the next on the GPU; None on the CPU, where it is `us`.
    """

    us: float
    p10: float
    p90: float
    samples: int
    mode: str
    host_us: float
    eager_us: float | None = None

    @classmethod
    def of(cls, samples: Sequence[float], mode: str, host_us: float, eager_us: float | None = None) -> Timing:
        ordered = sorted(samples)
        last = len(ordered) - 1
        return cls(statistics.median(ordered), ordered[round(0.1 * last)], ordered[round(0.9 * last)],
                   len(ordered), mode, host_us, eager_us)  # fmt: skip


def host_time_us(call: Call, *, device: torch.device | str = "cpu", calls: int = 20, batches: int = 7) -> float:
    """Return the host time of one call: how long Python and the driver take to enqueue it.

    Each batch of `calls` runs after a synchronisation, so that a full launch queue never blocks; the median batch
    counts. On the CPU it is simply the call's duration.

    Examples
    --------
    >>> host_time_us(lambda: None) < 100
    True
    """
    return direct_times_us(call, device=device, calls=calls, batches=batches)[0]


def direct_times_us(
    call: Call, *, device: torch.device | str = "cpu", calls: int = 20, batches: int = 7
) -> tuple[float, float]:
    """Return the host time of one call (`host_time_us`) and the time from one call to the next on the device.

    One call more stands before the events of a batch, so that the first launch of an idle GPU is not counted. On the
    CPU both are the call's duration.
    """
    device = torch.device(device)
    call()
    if device.type == "cuda":
        times = [_direct_batch(call, device, calls) for _ in range(batches)]
    else:
        times = [(us, us) for us in (_host_us(call, calls) for _ in range(batches))]
    host_us, eager_us = zip(*times, strict=True)
    return statistics.median(host_us), statistics.median(eager_us)


def _host_us(call: Call, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls * 1e6


def _direct_batch(call: Call, device: torch.device, calls: int) -> tuple[float, float]:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    stream = torch.cuda.current_stream(device)
    torch.cuda.synchronize(device)
    call()
    start.record(stream)
    host_us = _host_us(call, calls)
    end.record(stream)
    end.synchronize()
    return host_us, start.elapsed_time(end) * 1e3 / calls


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
    return CpuTimer(budget_s, ranks)


class CpuTimer(Timer):
    """Wall-clock time, for smoke tests and host-side code."""

    def __init__(self, budget_s: float = 0.3, ranks: Ranks | None = None) -> None:
        self._budget_s, self.ranks = budget_s, ranks or Ranks()

    def time(self, contenders: Mapping[str, Call], *, calls: int = 1, flush: bool = True) -> dict[str, Timing]:
        samples: dict[str, list[float]] = {name: [] for name in contenders}
        counts = {}
        for name, call in contenders.items():
            call()  # warm-up: caches, lazy initialisation
            seconds = self.ranks.max(max(_seconds(call), 1e-7))
            counts[name] = max(1, min(_MAX_SAMPLES, int(self._budget_s / seconds)) // _ROUNDS)
        for order in _orders(contenders):
            for name in order:
                call = contenders[name]
                samples[name] += [_seconds(call) * 1e6 for _ in range(counts[name])]
        return {name: Timing.of(taken, "wall", statistics.median(taken)) for name, taken in samples.items()}


def _orders(names: Iterable[str]) -> Iterator[list[str]]:
    """Of each round, the same on all ranks."""
    names, generator = list(names), random.Random(1)
    for _ in range(_ROUNDS):
        yield generator.sample(names, len(names))


def _seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@dataclass(frozen=True)
class _Contender:
    replay: Call
    mode: str
    flushes: int
    host_us: float = 0.0
    eager_us: float = 0.0


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
        self._flush_us = statistics.median(self._sample(_Contender(self._flush, "graph", 0), 20))

    def time(self, contenders: Mapping[str, Call], *, calls: int = 1, flush: bool = True) -> dict[str, Timing]:
        prepared = {name: self._prepare(call, calls, flush) for name, call in contenders.items()}
        counts = {name: self._count(contender) for name, contender in prepared.items()}
        samples: dict[str, list[float]] = {name: [] for name in contenders}
        for order in _orders(contenders):
            for name in order:
                samples[name] += [us / calls for us in self._sample(prepared[name], counts[name])]
        return {name: self._timing(samples[name], contender) for name, contender in prepared.items()}

    def _timing(self, samples: Sequence[float], contender: _Contender) -> Timing:
        timing = Timing.of(samples, contender.mode, contender.host_us)
        slowest = self.ranks.max
        return Timing(slowest(timing.us), slowest(timing.p10), slowest(timing.p90), timing.samples, timing.mode,
                      slowest(timing.host_us), slowest(contender.eager_us))  # fmt: skip

    def _prepare(self, call: Call, calls: int, flush: bool) -> _Contender:
        times = direct_times_us(call, device=self._device, calls=self._direct_calls(call), batches=_DIRECT_BATCHES)
        graph = self._try_capture(call, calls) if self._graph else None
        if self.ranks.max(float(graph is None)) == 0.0 and graph is not None:
            return _Contender(graph, "graph", int(flush), *times)

        def direct() -> None:
            for _ in range(calls):
                call()

        outlast = int(2 * times[0] * calls / self._flush_us) + 1
        return _Contender(direct, "eager", outlast if flush else 0, *times)

    def _direct_calls(self, call: Call) -> int:
        """Direct calls in a batch: all batches take at most a quarter of the budget; the same number on all ranks."""
        call()  # compiles and loads what it needs
        torch.cuda.synchronize(self._device)
        start = time.perf_counter()
        call()
        torch.cuda.synchronize(self._device)
        seconds = self.ranks.max(time.perf_counter() - start)
        return max(2, min(_MAX_DIRECT_CALLS, int(self._budget_s / 4 / _DIRECT_BATCHES / seconds)))

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
