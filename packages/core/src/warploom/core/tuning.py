"""Tuning tables: which backend was fastest at which shape, as measured by ``tools/tune``.

A family keeps one YAML file for each GPU under ``tuning/``:

.. code-block:: yaml

    schema: 1
    gpu: NVIDIA H200              # the driver's name; * and ? match as in file names
    operators:
      softmax:
        commit: 9478196cd4        # what was measured, with which torch, when
        torch: 2.11.0+cu130
        date: 2026-11-21
        rows:
        - at: {batch: 64, vocab: 128256, dtype: float32}     # fields of Problem.tuning_features()
          us: {cuda: 21.4, torch: 48.0}                      # median microseconds of each backend

`lookup` takes the rows whose text and boolean features equal the problem's, and of those the nearest by its numbers:
the distance is the sum over features of the squared ratio's logarithm, so that 64 lies midway between 32 and 128. The
backends of that row, fastest first, are the order in which ``auto`` tries them. A table without such a row has no say.

Tables are checked strictly when they are read; a message gives file, line and field.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warploom.core import families
from warploom.core.lined_yaml import LinedMapping, read_lined

if TYPE_CHECKING:
    from warploom.core.problem import Problem

__all__ = ["SCHEMA", "TuningHit", "TuningRow", "TuningTable", "load_table", "lookup", "tables_of"]

SCHEMA = 1
_FILE = {"schema": int, "gpu": str, "operators": dict}
_OPERATOR = {"commit": str, "torch": str, "date": str, "rows": list}

Feature = str | bool | int | float


@dataclass(frozen=True)
class TuningRow:
    """One measured shape: its features, the backends fastest first, and the line it stands in."""

    at: Mapping[str, Feature]
    us: Mapping[str, float]
    line: int

    @property
    def order(self) -> tuple[str, ...]:
        return tuple(sorted(self.us, key=self.us.__getitem__))

    def distance(self, features: Mapping[str, Any]) -> float | None:
        """Distance to a problem; None if a text or boolean feature differs or the problem lacks one."""
        total = 0.0
        for name, measured in self.at.items():
            actual = features.get(name)
            if _is_number(measured) and _is_number(actual):
                total += _log2_ratio(actual, measured) ** 2
            elif _plain(actual) != measured:
                return None
        return total


@dataclass(frozen=True)
class TuningTable:
    """One file: the GPU it holds for and its rows by operator. `source` is its path from the family on."""

    source: str
    gpu: str
    operators: Mapping[str, tuple[TuningRow, ...]]

    def nearest(self, operator: str, features: Mapping[str, Any]) -> TuningRow | None:
        """The row nearest to a problem; the first of equals."""
        rows = [(row.distance(features), row) for row in self.operators.get(operator, ())]
        fitting = [(distance, row) for distance, row in rows if distance is not None]
        return min(fitting, key=lambda pair: pair[0])[1] if fitting else None


@dataclass(frozen=True)
class TuningHit:
    """What a table says about a problem.

    Attributes
    ----------
    order : tuple of str
        Backends, fastest first.
    source : str
        File and line of the row that decided, e.g. ``"sampling/tuning/h200.yaml:12"``.
    """

    order: tuple[str, ...]
    source: str


def lookup(family: str, operator: str, problem: Problem, device_name: str) -> TuningHit | None:
    """Return what the family's table for this GPU says about a problem, None if it says nothing.

    Parameters
    ----------
    family, operator : str
        Whose tables, and which operator in them.
    problem : Problem
        Described by its `tuning_features`.
    device_name : str
        The GPU's name.

    Raises
    ------
    ArgumentError
        A table of the family is malformed.
    """
    for table in tables_of(family):
        if operator in table.operators and fnmatchcase(device_name, table.gpu):
            row = table.nearest(operator, problem.tuning_features())
            if row is not None:
                return TuningHit(row.order, f"{table.source}:{row.line}")
    return None


@functools.cache
def tables_of(family: str) -> tuple[TuningTable, ...]:
    """Read the tables of an installed family once; the empty tuple if it has none.

    Files are taken in the order of their names, so that a table of one GPU can stand before a pattern for several.
    """
    folder = _folder_of(family)
    return (
        tuple(load_table(path, f"{family}/tuning/{path.name}") for path in sorted(folder.glob("*.yaml")))
        if folder
        else ()
    )


def _folder_of(family: str) -> Path | None:
    """The folder ``tuning`` of the family's package, without importing it."""
    point = families.installed().get(family)
    spec = importlib.util.find_spec(point.module if point else f"warploom.{family}")
    if spec is None or not spec.submodule_search_locations:
        return None
    folders = [Path(location) / "tuning" for location in spec.submodule_search_locations]
    return next((folder for folder in folders if folder.is_dir()), None)


def load_table(path: Path, source: str = "") -> TuningTable:
    """Read and check one file.

    Parameters
    ----------
    source : str
        How messages name the file; its path by default.

    Raises
    ------
    ArgumentError
        Not YAML, an unknown or missing field, a wrong type; the message gives file, line and field.
    """
    document = read_lined(path, source or str(path))
    document.require_keys(_FILE)
    if document["schema"] != SCHEMA:
        raise document.error("schema", f"{SCHEMA}, the version that this release reads", document["schema"])
    operators = {}
    for name, entry in document["operators"].items():
        if not isinstance(entry, LinedMapping):
            raise document["operators"].error(name, "a mapping", type(entry).__name__)
        entry.require_keys(_OPERATOR)
        operators[name] = tuple(_row(entry, row) for row in entry["rows"])
    return TuningTable(document.source, document["gpu"], operators)


def _row(entry: LinedMapping, row: Any) -> TuningRow:
    if not isinstance(row, LinedMapping):
        raise entry.error("rows", "a list of mappings with 'at' and 'us'", repr(row))
    row.require_keys({"at": dict, "us": dict})
    for name, value in row["at"].items():
        if not isinstance(value, (str, bool, int, float)):
            raise row["at"].error(name, "text, a number, true or false", repr(value))
    if not row["us"]:
        raise row.error("us", "the time of at least one backend", "an empty mapping")
    for name, value in row["us"].items():
        if not _is_number(value) or not 0 < value < math.inf:
            raise row["us"].error(name, "a positive number of microseconds", repr(value))
    return TuningRow(dict(row["at"]), {name: float(value) for name, value in row["us"].items()}, row.line)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """The value as a table would hold it: what YAML has no type for is compared by its text."""
    return value if isinstance(value, (str, bool, int, float)) else str(value)


def _log2_ratio(a: Any, b: Any) -> float:
    """How many doublings lie between two sizes; 0 counts as a half, so that empty is beside 1, and signs never mix."""
    if (a < 0) != (b < 0):
        return 64.0
    return math.log2(max(abs(a), 0.5) / max(abs(b), 0.5))
