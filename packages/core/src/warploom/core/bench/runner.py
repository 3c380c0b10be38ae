"""Verify, then time: every case of every benchmark, ours against each peer that is there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch

from warploom.core.backends import OPERATORS
from warploom.core.bench.ceilings import Ceilings, limit_us
from warploom.core.bench.definition import Benchmark, Peer
from warploom.core.bench.outputs import first_rows, first_rows_of_work, poison, require_written
from warploom.core.bench.ranks import Ranks
from warploom.core.bench.timing import Timer, Timing
from warploom.core.device import device_name
from warploom.core.errors import UnsupportedError
from warploom.core.testing.grids import label

__all__ = ["CaseResult", "Contender", "run_case", "run_cases"]

OURS = "warploom"


@dataclass
class Contender:
    """One implementation in one case.

    `backend` is the backend that served our call, "" for peers; `problem` is why there is no time: not available,
    wrong, failed.
    """

    name: str
    backend: str = ""
    timing: Timing | None = None
    problem: str = ""


@dataclass(frozen=True)
class _Runnable:
    """How to run a contender; kept apart from its result, which must not keep the inputs of all cases alive."""

    contender: Contender
    call: Callable[[], Any]
    output: Callable[[Any], Any]
    verified: bool


@dataclass
class CaseResult:
    """All contenders in one case, ours first. `axis` is that of the benchmark, `target_us` what ours should take."""

    benchmark: str
    case: SimpleNamespace
    bytes: float
    flops: float
    limit_us: float
    contenders: list[Contender] = field(default_factory=list)
    axis: str = ""
    target_us: float | None = None

    @property
    def label(self) -> str:
        return label(self.case)

    @property
    def ours(self) -> Contender:
        return self.contenders[0]

    @property
    def best_peer(self) -> Contender | None:
        """The fastest peer that gave right results; our other backends are not peers."""
        timed = [one for one in self.contenders[1:] if one.timing is not None and not one.backend]
        return min(timed, key=_us, default=None)

    @property
    def ratio(self) -> float | None:
        """How many times faster ours is than the best peer."""
        if self.ours.timing is None or self.best_peer is None:
            return None
        return _us(self.best_peer) / self.ours.timing.us

    @property
    def met(self) -> bool | None:
        """Whether ours takes no longer than the target; None without a target or a time."""
        if self.ours.timing is None or self.target_us is None:
            return None
        return self.ours.timing.us <= self.target_us

    def rate(self, contender: Contender) -> tuple[float, str] | None:
        """TFLOP/s for work that computes, GB/s for work that moves."""
        if contender.timing is None or not (self.flops or self.bytes):
            return None
        if self.flops and self.flops >= 16 * self.bytes:  # far above one operation per byte: a matrix product
            return self.flops / contender.timing.us / 1e6, "TFLOP/s"
        return self.bytes / contender.timing.us / 1e3, "GB/s"

    def share(self, contender: Contender) -> float | None:
        """Share of the ceiling: the limit over the time."""
        if contender.timing is None or not self.limit_us:
            return None
        return self.limit_us / contender.timing.us


def _us(contender: Contender) -> float:
    return contender.timing.us if contender.timing else float("inf")


def run_cases(
    benchmarks: Iterable[Benchmark],
    device: torch.device,
    timer: Timer,
    ceilings: Ceilings,
    *,
    quick: bool = False,
    each_backend: bool = False,
    done: Callable[[Benchmark, CaseResult], None] | None = None,
) -> list[CaseResult]:
    """Run all cases of `benchmarks`; a failing contender is reported in its result and never ends the run.

    Parameters
    ----------
    quick : bool
        Only the quick cases.
    each_backend : bool
        Time each of our backends that supports the case, besides the one that ``auto`` takes. Not the reference, which
        is meant to be clear and can be a thousand times slower.
    done : callable, optional
        Called with each result as it comes.
    """
    results = []
    for benchmark in benchmarks:
        for case in benchmark.cases_for(quick):
            result = run_case(benchmark, case, device, timer, ceilings, each_backend=each_backend)
            results.append(result)
            if done:
                done(benchmark, result)
    return results


def run_case(
    benchmark: Benchmark,
    case: SimpleNamespace,
    device: torch.device,
    timer: Timer,
    ceilings: Ceilings,
    *,
    each_backend: bool = False,
) -> CaseResult:
    """Make the inputs of one case, verify every contender against the reference, time the right ones in turns."""
    work = benchmark.prepare(case, device)
    nbytes = benchmark.bytes(work) if benchmark.bytes else 0.0
    flops = benchmark.flops(work) if benchmark.flops else 0.0
    limit = limit_us(ceilings, nbytes, flops, benchmark.math)
    if benchmark.least_us:
        limit = max(limit, benchmark.least_us(work))
    result = CaseResult(
        benchmark.name, case, nbytes, flops, limit, axis=benchmark.axis,
        target_us=benchmark.target_us(case, device_name(device)),
    )  # fmt: skip
    runnables = _runnables(benchmark, work, each_backend)
    result.contenders = [one.contender for one in runnables]
    expected = _expected(benchmark, work)
    for runnable in runnables:
        _agree(runnable.contender, timer.ranks)
        if not runnable.contender.problem:
            runnable.contender.problem = _verify(benchmark, work, runnable, expected)
        _agree(runnable.contender, timer.ranks)
    del expected
    ready = {one.contender.name: one.call for one in runnables if not one.contender.problem}
    timings = timer.time(ready, calls=benchmark.calls, flush=benchmark.flush) if ready else {}
    for contender in result.contenders:
        contender.timing = timings.get(contender.name)
    return result


def _expected(benchmark: Benchmark, work: Any) -> Any:
    if benchmark.reference is None:
        return None
    rows = benchmark.check_rows
    return benchmark.reference(first_rows_of_work(work, rows) if rows else work)


def _runnables(benchmark: Benchmark, work: Any, each_backend: bool) -> list[_Runnable]:
    """Ours first, then our other backends if wanted, then the peers."""

    def ours(name: str, backend: str) -> _Runnable:
        return _Runnable(Contender(name, backend), lambda: benchmark.ours(work, backend), _same, True)

    def theirs(peer: Peer) -> _Runnable:
        contender = Contender(peer.name, problem=peer.available(work))
        return _Runnable(contender, lambda: peer.fn(work), peer.output, peer.verified)

    found = [ours(OURS, "auto")]
    operator = OPERATORS.get(benchmark.operator)
    if each_backend and operator is not None:
        names = [name for name in operator.backend_names if name != "reference"]
        found += [ours(f"{OURS}:{name}", name) for name in names]
    return found + [theirs(peer) for peer in benchmark.peers]


def _same(result: Any) -> Any:
    return result


def _verify(benchmark: Benchmark, work: Any, runnable: _Runnable, expected: Any) -> str:
    """Return why the contender can't be timed, "" if its result is right. Notes which backend served our call."""
    operator = OPERATORS.get(benchmark.operator)
    poison(getattr(work, "out", None))
    try:
        actual = runnable.output(runnable.call())
        contender = runnable.contender
        if contender.backend == "auto" and operator is not None and operator.last is not None:
            contender.backend = operator.last.name
        if runnable.verified:
            _compare(benchmark, work, actual, expected)
    except UnsupportedError:
        return "not supported"
    except AssertionError as error:
        return f"WRONG: {_brief(error)}"
    except Exception as error:  # a peer may raise anything; the other contenders still count
        return f"failed: {type(error).__name__}: {_brief(error)}"
    return ""


def _compare(benchmark: Benchmark, work: Any, actual: Any, expected: Any) -> None:
    if benchmark.check_rows:
        require_written(actual, benchmark.check_rows)
        actual = first_rows(actual, benchmark.check_rows)
    benchmark.check(work, actual, expected)


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:199] + "…"


def _agree(contender: Contender, ranks: Ranks) -> None:
    """A collective that one rank can't run must not be started by the others: they would wait for it."""
    if ranks.max(float(bool(contender.problem))) and not contender.problem:
        contender.problem = "not on every rank"
