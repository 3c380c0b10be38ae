"""Results as text for the terminal, Markdown for ``docs/benchmarks`` and JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from warploom.core.bench.ceilings import Ceilings
from warploom.core.bench.runner import CaseResult, Contender

__all__ = ["Report", "Table", "case_table", "detail_lines", "target_table"]


@dataclass(frozen=True)
class Table:
    """Cells as they are printed, with a title and the names of the columns; the first column is aligned left."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def text(self) -> str:
        """Columns aligned with spaces, for a terminal."""
        grid = [list(self.columns), *map(list, self.rows)]
        widths = [max(len(row[i]) for row in grid) for i in range(len(self.columns))]
        lines = [self.title, *("  ".join(_align(row, widths)).rstrip() for row in grid), *self.notes]
        return "\n".join(lines)

    def markdown(self) -> str:
        """A section with a Markdown table; the notes follow as a list."""
        head = "| " + " | ".join(self.columns) + " |"
        rule = "| --- |" + " ---: |" * (len(self.columns) - 1)
        body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in self.rows]
        notes = [f"- {note}" for note in self.notes]
        return "\n".join([f"### {self.title}", "", head, rule, *body, "", *notes]).rstrip() + "\n"


def _align(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        cell.ljust(width) if i == 0 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]


@dataclass
class Report:
    """All that one run measured."""

    environment: dict[str, str]
    ceilings: Ceilings | None = None
    method: dict[str, Any] = field(default_factory=dict)
    families: dict[str, list[CaseResult]] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)

    def all_tables(self) -> list[Table]:
        """The targets, one table for each benchmark, then those that are no comparison (compile times, sizes)."""
        targets = target_table(self.families)
        found = [targets] if targets else []
        for family, results in self.families.items():
            for name in dict.fromkeys(result.benchmark for result in results):
                found.append(case_table(f"{family} / {name}", [r for r in results if r.benchmark == name]))
        return found + self.tables

    def markdown(self) -> str:
        """The whole run as a Markdown page."""
        lines = ["# Benchmarks", "", *(f"- {name}: {value}" for name, value in self.environment.items())]
        if self.ceilings:
            lines.append(f"- ceilings measured in this run: {self.ceilings}")
        lines += [f"- {name}: {value}" for name, value in self.method.items()]
        return "\n".join([*lines, "", *(table.markdown() for table in self.all_tables())])

    def as_json(self) -> dict[str, Any]:
        """The whole run as plain data."""
        return {
            "environment": self.environment,
            "ceilings": asdict(self.ceilings) if self.ceilings else None,
            "method": self.method,
            "results": [
                _result_json(family, result) for family, results in self.families.items() for result in results
            ],
            "tables": [asdict(table) for table in self.tables],
        }

    def write(self, folder: Path, name: str) -> list[Path]:
        """Write ``<name>.json`` and ``<name>.md`` and return their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        data, page = folder / f"{name}.json", folder / f"{name}.md"
        data.write_text(json.dumps(self.as_json(), indent=1, default=str) + "\n")
        page.write_text(self.markdown())
        return [data, page]


_COLUMNS = ("case", "us", "p10–p90", "rate", "of limit", "target", "eager us", "host us", "backend", "best peer",
            "its us", "its eager us", "ratio")  # fmt: skip
# Left out of a table in which nobody has them: targets are of one GPU, direct calls are timed apart on GPUs alone.
_OPTIONAL = {"target", "eager us", "its eager us"}
_NONE = "–"


def case_table(title: str, results: Sequence[CaseResult]) -> Table:
    """One line for each case: ours and the best peer. All peers are in the notes and in the JSON."""
    rows = [_case_row(result) for result in results]
    columns = [name for name in _COLUMNS if name not in _OPTIONAL or any(name in row for row in rows)]
    return Table(title, columns, [[row.get(name, _NONE) for name in columns] for row in rows], _notes(results))


def _case_row(result: CaseResult) -> dict[str, str]:
    ours, peer = result.ours, result.best_peer
    row = {"case": result.label, "backend": ours.backend}
    if ours.timing is not None:
        row["us"], row["p10–p90"] = _time(ours), f"{_us(ours.timing.p10)}–{_us(ours.timing.p90)}"
        row["host us"] = _us(ours.timing.host_us)
        if ours.timing.eager_us is not None:
            row["eager us"] = _us(ours.timing.eager_us)
    if (rate := result.rate(ours)) is not None:
        row["rate"] = f"{rate[0]:.4g} {rate[1]}"
    if share := result.share(ours):
        row["of limit"] = f"{share:.0%}"
    if result.target_us is not None:
        row["target"] = _target(result)
    if peer is not None and peer.timing is not None:
        row["best peer"], row["its us"] = peer.name, _time(peer)
        if peer.timing.eager_us is not None:
            row["its eager us"] = _us(peer.timing.eager_us)
    if result.ratio:
        row["ratio"] = f"{result.ratio:.2f}×"
    return row


def target_table(families: Mapping[str, Sequence[CaseResult]]) -> Table | None:
    """The cases that have a target on this GPU, of all benchmarks; None if there are none."""
    rows = []
    for family, results in families.items():
        for result in (one for one in results if one.target_us is not None):
            peer = result.best_peer
            rows.append([
                f"{family} / {result.benchmark} {result.label}",
                _us(result.limit_us),
                _time(result.ours) if result.ours.timing else _NONE,
                _target(result),
                peer.name if peer else _NONE,
                _time(peer) if peer else _NONE,
                f"{result.ratio:.2f}×" if result.ratio else _NONE,
            ])  # fmt: skip
    columns = ("case", "limit us", "us", "target us", "best peer", "its us", "ratio")
    return Table("Targets", columns, rows) if rows else None


def _target(result: CaseResult) -> str:
    verdict = {True: " ok", False: " missed", None: ""}[result.met]
    return f"≤ {result.target_us:g}{verdict}"


def _notes(results: Sequence[CaseResult]) -> list[str]:
    """Who is left out of all cases and why, then the details of each case."""
    left_out = [{(one.name, one.problem) for one in result.contenders if one.problem} for result in results]
    nowhere = set.intersection(*left_out) if len(results) > 1 else set()
    lines = [f"{name}: {problem}" for name, problem in sorted(nowhere)]
    return lines + [line for result in results for line in detail_lines(result, {name for name, _ in nowhere})]


def detail_lines(result: CaseResult, without: Collection[str] = ()) -> list[str]:
    """The contenders that the table has no room for: slower peers, and who was left out and why."""
    shown = {result.ours.name, result.best_peer.name if result.best_peer else ""}
    kept = [one for one in result.contenders if (one.name not in shown or one.problem) and one.name not in without]
    return [f"{result.label}: {'; '.join(map(_detail, kept))}"] if kept else []


def _detail(contender: Contender) -> str:
    if contender.timing is not None:
        eager_us = contender.timing.eager_us
        return f"{contender.name} {_time(contender, ' us')}" + (f", eager {_us(eager_us)}" if eager_us else "")
    return f"{contender.name}: {contender.problem}"


def _time(contender: Contender, unit: str = "") -> str:
    """The time, with how it was taken where that is not by a graph."""
    assert contender.timing is not None
    mode = "" if contender.timing.mode == "graph" else f" ({contender.timing.mode})"
    return _us(contender.timing.us) + unit + mode


def _us(value: float) -> str:
    return f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def _result_json(family: str, result: CaseResult) -> dict[str, Any]:
    return {
        "family": family,
        "benchmark": result.benchmark,
        "case": {name: str(value) if not isinstance(value, (int, float, bool, str)) else value
                 for name, value in vars(result.case).items()},
        "bytes": result.bytes,
        "flops": result.flops,
        "limit_us": result.limit_us,
        "target_us": result.target_us,
        "target_met": result.met,
        "ratio_to_best_peer": result.ratio,
        "contenders": [
            {
                "name": one.name,
                "backend": one.backend,
                "problem": one.problem,
                "share_of_limit": result.share(one),
                **(asdict(one.timing) if one.timing else {}),
            }
            for one in result.contenders
        ],
    }  # fmt: skip
