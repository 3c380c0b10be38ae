"""Prints the compile times of the shipped kernels after their tests."""

from __future__ import annotations

import pytest

SHOWN = 5


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
    times = sorted(
        (properties["compile_seconds"], properties["kernel"])
        for report in reports
        if "compile_seconds" in (properties := dict(report.user_properties))
    )
    if times:
        total = sum(seconds for seconds, _ in times)
        terminalreporter.section("cold compile times")
        terminalreporter.line(f"{len(times)} kernels, {total:.1f} s of one core; the slowest:")
        for seconds, kernel in reversed(times[-SHOWN:]):
            terminalreporter.line(f"  {seconds:5.2f} s  {kernel}")
