"""A drawing of a `WorkSchedule`: what each block works on, one line a block."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from warploom.attention.schedule import WorkSchedule
from warploom.core.charts import CHART_STYLE, NO_MATPLOTLIB
from warploom.core.errors import UnsupportedError

__all__ = ["draw_schedule"]

_LINE_INCHES, _LEAST_INCHES, _MOST_INCHES = 0.06, 2.5, 40.0


def draw_schedule(schedule: WorkSchedule, title: str, path: str | Path) -> None:
    """Write the chart of a schedule; the ending of `path` says in which format (``.svg``, ``.png``, ``.pdf``).

    Raises
    ------
    UnsupportedError
        matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise UnsupportedError(f"plot: {NO_MATPLOTLIB}") from error
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = schedule.shape.groups
    with matplotlib.rc_context(CHART_STYLE):
        height = min(max(groups * _LINE_INCHES, _LEAST_INCHES), _MOST_INCHES)
        figure = Figure(figsize=(9, height + 1), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        lines, begins, widths, requests = _bars(schedule)
        colours = matplotlib.colormaps["tab20"](requests % 20)
        # White between items, so that neighbours of one request can be told apart.
        axes.barh(lines, widths, left=begins, height=0.9, color=colours, edgecolor="white", linewidth=0.3)
        axes.axvline(schedule.total / groups, color="black", linewidth=0.8, linestyle=":")
        axes.invert_yaxis()
        axes.set_xlabel("units: tiles of keys, and what each item takes beside them; the dotted line is the mean")
        axes.set_ylabel(f"block of each of {schedule.shape.lanes} heads")
        axes.set_title(
            f"{title}: longest block {schedule.balance:.2f} times the mean\na colour for each request", fontsize=10
        )
        figure.savefig(path)


def _bars(schedule: WorkSchedule) -> tuple[list[int], list[int], list[int], np.ndarray]:
    """Line, begin and width of every bar, and the request that it is for."""
    lines, begins, widths, requests = [], [], [], []
    for group in range(schedule.shape.groups):
        at = 0
        for item, begin, end in schedule.shares(group):
            lines.append(group)
            begins.append(at)
            widths.append(end - begin)
            requests.append(int(schedule.requests[item]))
            at += end - begin
    return lines, begins, widths, np.array(requests, dtype=np.int64)
