"""A chart of a report: time per case, ours beside the peers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from warploom.core.bench.report import Report
from warploom.core.bench.runner import CaseResult

__all__ = ["draw_chart"]

_MAX_CASES = 24  # per panel; more labels than that cannot be read


def draw_chart(report: Report, path: Path) -> str:
    """Write a chart of all benchmarks to `path` (``.svg`` or ``.png``); returns "" or why there is none."""
    panels = _panels(report)
    if not panels:
        return "no chart: nothing was timed"
    try:
        import matplotlib
    except ImportError:
        return "no chart: matplotlib is not installed (pip install 'warploom-core[chart]')"
    matplotlib.use("Agg")
    from matplotlib import pyplot

    heights = [1.2 + 0.18 * sum(len(_timed(result)) + 1 for result in results) for _, results in panels]
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(9, sum(heights)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    names = list(dict.fromkeys(name for _, results in panels for result in results for name in _timed(result)))
    colours = {name: f"C{i % 10}" for i, name in enumerate(names)}
    for axis, (title, results) in zip(axes[:, 0], panels, strict=True):
        _draw_panel(axis, title, results, colours)
    figure.suptitle(f"{report.environment.get('device', '')}, commit {report.environment.get('commit', '')}")
    figure.savefig(path)
    pyplot.close(figure)
    return ""


def _panels(report: Report) -> list[tuple[str, list[CaseResult]]]:
    panels = []
    for family, results in report.families.items():
        for name in dict.fromkeys(result.benchmark for result in results):
            timed = [result for result in results if result.benchmark == name and _timed(result)]
            if timed:
                panels.append((f"{family} / {name}", timed[:_MAX_CASES]))
    return panels


def _timed(result: CaseResult) -> dict[str, float]:
    return {one.name: one.timing.us for one in result.contenders if one.timing is not None}


def _draw_panel(axis: Any, title: str, results: list[CaseResult], colours: dict[str, str]) -> None:
    """Horizontal bars, one group a case, on a logarithmic scale; the limit is a black line across the group."""
    position, ticks, labelled = 0.0, [], set()
    for result in reversed(results):
        times = _timed(result)
        start = position
        for name in reversed(times):
            axis.barh(position, times[name], color=colours[name], label=None if name in labelled else name)
            labelled.add(name)
            position += 1.0
        if result.limit_us:
            axis.vlines(result.limit_us, start - 0.5, position - 0.5, color="black")
        ticks.append(((start + position - 1.0) / 2, result.label))
        position += 1.0
    axis.set_yticks([at for at, _ in ticks], [text for _, text in ticks])
    axis.set(xscale="log", xlabel="us (black line: limit by bytes or operations)", title=title)
    axis.legend(loc="best", fontsize="small")
