"""Everything that CI checks: lint, types, the CPU tests, the MPI tests and the packaging tests."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from environment import ROOT, Environment

GROUPS = ("lint", "types", "unit", "mpi", "packaging")
_RANKS = (1, 2, 4)
_LIMIT_SECONDS = 1500  # of one check: CI as a whole stays under 25 minutes
_COUNT = re.compile(r"(\d+) (passed|failed|skipped|errors?|xfailed|xpassed|deselected)")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Check:
    """One command, run in the root of the checkout."""

    group: str
    name: str
    command: Sequence[object]


@dataclass
class Outcome:
    """How a check went; `counts` come from pytest's closing line."""

    check: Check
    code: int
    seconds: float
    counts: Counter[str] = field(default_factory=Counter)


def run(environment: Environment, *, only: Sequence[str], quick: bool) -> int:
    """Run the checks, all of them even when one fails, and close with a table."""
    wanted = [check for check in _checks(environment, quick) if not only or check.group in only]
    outcomes = [_run(check, environment) for check in wanted]
    _summarise(outcomes)
    return int(any(outcome.code for outcome in outcomes))


def _checks(environment: Environment, quick: bool) -> Iterator[Check]:
    tool, python = environment.tool, environment.executable
    colour = ["--color=yes"] if sys.stdout.isatty() else []
    pytest = [python, "-m", "pytest", "-q", "-rfE", *colour]
    fast = " and not slow" if quick else ""
    yield Check("lint", "ruff", [tool("ruff"), "check", "."])
    yield Check("lint", "ruff format", [tool("ruff"), "format", "--check", "."])
    yield Check("types", "mypy", [tool("mypy")])
    yield Check("unit", "unit tests", [*pytest, "--ignore=tests/packaging", "-m", f"not mpi{fast}"])
    for ranks in _RANKS[1:2] if quick else _RANKS:
        mpirun = [tool("mpirun"), "-n", ranks, *pytest, "-m", f"mpi{fast}", "tests/comm"]
        yield Check("mpi", f"mpi, {ranks} rank{'s' if ranks > 1 else ''}", mpirun)
    if not quick:
        yield Check("packaging", "packaging", [*pytest, "tests/packaging"])


def _run(check: Check, environment: Environment) -> Outcome:
    """Run one check with its output passed through as it comes."""
    print(f"\n== {check.name}", flush=True)
    start = time.monotonic()
    process = subprocess.Popen(
        [str(word) for word in check.command],
        cwd=ROOT,
        env=environment.variables(OMP_NUM_THREADS="1", PYTHONUNBUFFERED="1"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that a hang ends with all its ranks
    )
    outcome = Outcome(check, 0, 0.0)
    try:
        signal.signal(signal.SIGALRM, lambda *_: _stop(process, check))
        signal.alarm(_LIMIT_SECONDS)
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            outcome.counts = _counted(line) or outcome.counts
        outcome.code = process.wait()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    finally:
        signal.alarm(0)
    outcome.seconds = time.monotonic() - start
    return outcome


def _stop(process: subprocess.Popen[str], check: Check) -> None:
    print(f"\n{check.name}: stopped, it ran for more than {_LIMIT_SECONDS} s", flush=True)
    os.killpg(process.pid, signal.SIGKILL)


def _counted(line: str) -> Counter[str]:
    """The counts of pytest's closing line, empty for any other line."""
    plain = _COLOUR.sub("", line).strip("= \n")
    if not re.search(r" in [\d.]+s( \(.*\))?$", plain):
        return Counter()
    return Counter(
        {what.rstrip("s") if what.startswith("error") else what: int(count) for count, what in _COUNT.findall(plain)}
    )


def _summarise(outcomes: Sequence[Outcome]) -> None:
    total: Counter[str] = Counter()
    print("\n== summary")
    for outcome in outcomes:
        verdict = "ok" if outcome.code == 0 else f"FAILED ({outcome.code})"
        shown = ", ".join(f"{count} {what}" for what, count in outcome.counts.items() if count)
        print(f"{outcome.check.name:<16} {verdict:<12} {outcome.seconds:7.1f} s  {shown}")
        total += outcome.counts
    silent = sum(1 for outcome in outcomes if outcome.code and not outcome.counts["failed"] + outcome.counts["error"])
    failed = total["failed"] + total["error"] + silent
    print(f"{sum(outcome.seconds for outcome in outcomes):.0f} s in all")
    print(f"{total['passed']} passed, {failed} failed, {total['skipped']} skipped")
