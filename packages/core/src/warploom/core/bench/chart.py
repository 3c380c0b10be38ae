"""A chart of a report: ours beside the peers and the limit, as lines over a parameter of the cases or as bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from warploom.core.bench.report import Report
from warploom.core.bench.runner import OURS, CaseResult
from warploom.core.charts import CHART_STYLE, NO_MATPLOTLIB
from warploom.core.testing.grids import label

__all__ = ["draw_chart"]

_MAX_CASES = 24  # of a panel with bars; more labels than that cannot be read
_MAX_GROUPS = 4  # of cases that a benchmark has lines for, side by side


@dataclass
class _Panel:
    """One benchmark; `groups` are those of its results that lines go through, none where there are bars."""

    title: str
    results: list[CaseResult]
    axis: str
    groups: dict[str, list[CaseResult]]

    @property
    def bars(self) -> list[CaseResult]:
        """The results that have bars where there are no lines."""
        return self.results[:_MAX_CASES]

    @property
    def height(self) -> float:
        """Inches."""
        return 3.6 if self.groups else 1.2 + 0.18 * sum(len(_timed(result)) + 1 for result in self.bars)


def draw_chart(report: Report, path: Path) -> str:
    """Write a chart of all benchmarks to `path` (``.svg`` or ``.png``); returns "" or why there is none."""
    panels = _panels(report)
    if not panels:
        return "no chart: nothing was timed"
    try:
        import matplotlib
    except ImportError:
        return f"no chart: {NO_MATPLOTLIB}"
    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context(CHART_STYLE):
        heights = [panel.height for panel in panels]
        width = max(9.0, 2.5 + 3.5 * max(len(panel.groups) for panel in panels))
        figure = pyplot.figure(figsize=(width, sum(heights) + 0.4), layout="constrained")
        figure.suptitle(f"{report.environment.get('device', '')}, commit {report.environment.get('commit', '')}")
        parts = figure.subfigures(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
        colours = _colours(panels)
        least_us = report.ceilings.launch_us if report.ceilings else 0.0
        for part, panel in zip(parts, panels, strict=True):
            if panel.groups:
                _draw_lines(part, panel, colours, least_us)
            else:
                _draw_bars(part.subplots(), panel, colours, least_us)
        figure.savefig(path)
        pyplot.close(figure)
    return ""


def _panels(report: Report) -> list[_Panel]:
    panels = []
    for family, results in report.families.items():
        for name in dict.fromkeys(result.benchmark for result in results):
            timed = [result for result in results if result.benchmark == name and _timed(result)]
            if timed:
                axis = timed[0].axis
                panels.append(_Panel(f"{family} / {name}", timed, axis, _groups(timed, axis)))
    return panels


def _groups(results: Sequence[CaseResult], axis: str) -> dict[str, list[CaseResult]]:
    """Results by the label of what cases have besides `axis`: the groups with the most points, if that is a line."""
    groups: dict[str, list[CaseResult]] = {}
    for result in results:
        others = {name: value for name, value in vars(result.case).items() if name != axis}
        if len(others) < len(vars(result.case)):
            groups.setdefault(label(SimpleNamespace(**others)), []).append(result)
    most = max(map(len, groups.values()), default=0)
    longest = [(name, group) for name, group in groups.items() if len(group) == most > 1]
    return dict(longest[:_MAX_GROUPS])


def _timed(result: CaseResult) -> dict[str, float]:
    return {one.name: one.timing.us for one in result.contenders if one.timing is not None}


def _colours(panels: Sequence[_Panel]) -> dict[str, Any]:
    """One colour for a contender throughout."""
    names = list(dict.fromkeys(name for panel in panels for result in panel.results for name in _timed(result)))
    if len(names) <= 10:
        return {name: f"C{i}" for i, name in enumerate(names)}
    from matplotlib import colormaps

    return {name: colormaps["tab20"](i % 20) for i, name in enumerate(names)}


def _draw_lines(part: Any, panel: _Panel, colours: dict[str, Any], least_us: float) -> None:
    """Time over the axis, both logarithmic, a plot for each group; the legend stands beside them."""
    part.suptitle(panel.title, fontsize="medium")
    plots = part.subplots(1, len(panel.groups), sharey=True, squeeze=False)[0]
    handles: dict[str, Any] = {}
    for plot, (title, results) in zip(plots, panel.groups.items(), strict=True):
        handles |= _draw_group(plot, sorted(results, key=lambda one: _at(one)), colours, least_us)
        plot.set_title(title, fontsize="small")
        plot.set_xlabel(panel.axis)
        plot.grid(alpha=0.3)
    plots[0].set_ylabel("us")
    part.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize="small", frameon=False)


def _at(result: CaseResult) -> float:
    return float(getattr(result.case, result.axis))


def _draw_group(plot: Any, results: Sequence[CaseResult], colours: dict[str, Any], least_us: float) -> dict[str, Any]:
    """Draw a line for each contender, the limit, targets, and ours by direct calls; returns what the legend shows."""
    ticks = [_at(result) for result in results]
    plot.set_xscale("log", base=2)
    plot.set_yscale("log")
    plot.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize="small")
    handles: dict[str, Any] = {}

    def line(name: str, points: list[tuple[float, float]], **style: Any) -> None:
        if points:
            handles[name] = plot.plot(*zip(*points, strict=True), **style)[0]

    for name in dict.fromkeys(name for result in results for name in _timed(result)):
        points = [(_at(result), us) for result in results if (us := _timed(result).get(name)) is not None]
        width, order = (2.5, 3) if name == OURS else (1.2, 2)
        line(name, points, color=colours[name], marker="o", markersize=3, linewidth=width, zorder=order)
    eager = [(_at(one), us) for one in results if one.ours.timing and (us := one.ours.timing.eager_us) is not None]
    line(f"{OURS}, direct calls", eager, color=colours.get(OURS), linestyle=":")
    line("target", [(_at(one), one.target_us) for one in results if one.target_us], color="black", marker="_",
         markersize=12, markeredgewidth=2, linestyle="none", zorder=4)  # fmt: skip
    limits = [(_at(one), max(one.limit_us, least_us)) for one in results if one.limit_us]
    line("limit, at least a launch", limits, color="black", linestyle="--", linewidth=1)
    return handles


def _draw_bars(plot: Any, panel: _Panel, colours: dict[str, Any], least_us: float) -> None:
    """Horizontal bars, one group a case, on a logarithmic scale; the limit is a black line across the group."""
    position, ticks, labelled = 0.0, [], set()
    for result in reversed(panel.bars):
        times = _timed(result)
        start = position
        for name in reversed(times):
            plot.barh(position, times[name], color=colours[name], label=None if name in labelled else name)
            labelled.add(name)
            position += 1.0
        if result.limit_us:
            plot.vlines(max(result.limit_us, least_us), start - 0.5, position - 0.5, color="black")
        ticks.append(((start + position - 1.0) / 2, result.label))
        position += 1.0
    plot.set_yticks([at for at, _ in ticks], [text for _, text in ticks])
    plot.set(xscale="log", xlabel="us (black line: limit, at least a launch)", title=panel.title)
    plot.legend(loc="best", fontsize="small")
