"""What every test runs under: an own kernel cache, one thread, skips with reasons, and no hang among MPI ranks."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import hypothesis
import pytest
import torch

from warploom.core.testing import why_no_gpu

_SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_SIZE")  # set by Open MPI's and MPICH's mpirun
WORLD_SIZE = next((int(os.environ[name]) for name in _SIZE_VARIABLES if name in os.environ), 1)

hypothesis.settings.register_profile(
    "warploom",
    deadline=None,  # the first example may compile a kernel
    derandomize=bool(os.environ.get("CI")) or WORLD_SIZE > 1,  # ranks must draw the same examples
)
hypothesis.settings.load_profile("warploom")


@pytest.hookimpl(trylast=True)  # after pytest's terminal reporter is there
def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    cache = Path(tempfile.mkdtemp(prefix="warploom-tests-"))
    config.add_cleanup(lambda: shutil.rmtree(cache, ignore_errors=True))
    os.environ["WARPLOOM_CACHE_DIR"] = str(cache)  # subprocesses of the tests share it
    if WORLD_SIZE > 1:
        config.pluginmanager.register(_Rank(config), "warploom-rank")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        reason = _why_not(item)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say why tests were skipped, a line a reason: on a machine without a GPU they are thousands."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    if reasons:
        terminalreporter.section("skipped")
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count:6}  {reason}")


def _why_not(item: pytest.Item) -> str:
    """Why this machine, or this way of starting, cannot run a test."""
    if (gpu := item.get_closest_marker("gpu")) is not None:
        return why_no_gpu(**gpu.kwargs)
    if (multigpu := item.get_closest_marker("multigpu")) is not None:
        if WORLD_SIZE < 2:
            return "runs under mpirun -n 2 or more"
        return why_no_gpu(**{"count": WORLD_SIZE, **multigpu.kwargs})
    if item.get_closest_marker("mpi") is not None and not _has_mpi():
        return "needs mpi4py and an MPI library"
    return ""


def _has_mpi() -> bool:
    try:
        import mpi4py.MPI  # noqa: F401
    except (ImportError, RuntimeError):  # mpi4py without an MPI library raises either
        return False
    return True


class _Rank:
    """Under mpirun: only rank 0 reports, and the first failure on any rank ends all of them.

    Without the abort, the ranks that did not fail wait in the next collective for good.
    """

    def __init__(self, config: pytest.Config) -> None:
        from mpi4py import MPI

        self._comm = MPI.COMM_WORLD
        if self._comm.rank > 0:
            config.option.color = "no"
            reporter = config.pluginmanager.getplugin("terminalreporter")
            reporter._tw._file = open(os.devnull, "w")  # noqa: SIM115  (open until the process ends)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._abort(f"{report.nodeid} ({report.when})\n{report.longreprtext}")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._abort(f"collecting {report.nodeid}\n{report.longreprtext}")

    def pytest_internalerror(self, excrepr: object) -> None:
        self._abort(str(excrepr))

    def _abort(self, what: str) -> None:
        print(f"\nFAILED on rank {self._comm.rank} of {self._comm.size}: {what}", file=sys.__stderr__, flush=True)
        self._comm.Abort(1)
