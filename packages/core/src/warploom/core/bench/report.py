"""Results as text for the terminal, Markdown for ``docs/benchmarks`` and JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from warploom.core.bench.ceilings import Ceilings
from warploom.core.bench.runner import CaseResult, Contender

__all__ = ["Report", "Table", "case_table", "detail_lines"]


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
        """One table for each benchmark, then the tables of the suites that are no comparison (compile times, sizes)."""
        found = []
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


_COLUMNS = ("case", "us", "p10–p90", "rate", "of limit", "host us", "backend", "best peer", "its us", "ratio")


def case_table(title: str, results: Sequence[CaseResult]) -> Table:
    """One line for each case: ours and the best peer. All peers are in `detail_lines` and in the JSON."""
    rows = [_case_row(result) for result in results]
    return Table(title, _COLUMNS, rows, [line for result in results for line in detail_lines(result)])


def _case_row(result: CaseResult) -> list[str]:
    ours, peer = result.ours, result.best_peer
    if ours.timing is None:
        mine = ["–", "–", "–", "–", "–", ours.backend]
    else:
        timing = ours.timing
        rate, share = result.rate(ours), result.share(ours)
        mine = [
            _us(timing.us) + ("" if timing.mode == "graph" else f" ({timing.mode})"),
            f"{_us(timing.p10)}–{_us(timing.p90)}",
            f"{rate[0]:.4g} {rate[1]}" if rate else "–",
            f"{share:.0%}" if share else "–",
            _us(timing.host_us),
            ours.backend,
        ]
    theirs = [peer.name, _us(peer.timing.us)] if peer and peer.timing else ["–", "–"]
    return [result.label, *mine, *theirs, f"{result.ratio:.2f}×" if result.ratio else "–"]


def detail_lines(result: CaseResult) -> list[str]:
    """The contenders that the table has no room for: slower peers, and who was left out and why."""
    shown = {result.ours.name, result.best_peer.name if result.best_peer else ""}
    parts = [_detail(one) for one in result.contenders if one.name not in shown or one.problem]
    return [f"{result.label}: {'; '.join(parts)}"] if parts else []


def _detail(contender: Contender) -> str:
    if contender.timing is not None:
        mode = "" if contender.timing.mode == "graph" else f" ({contender.timing.mode})"
        return f"{contender.name} {_us(contender.timing.us)} us{mode}"
    return f"{contender.name}: {contender.problem}"


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
