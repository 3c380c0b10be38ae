"""Measure every backend of the operators behind benchmarks, and write what `warploom.core.tuning` reads."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from warploom.core.backends import OPERATORS, Operator
from warploom.core.bench.ceilings import Ceilings
from warploom.core.bench.definition import Benchmark
from warploom.core.bench.runner import CaseResult, run_case
from warploom.core.bench.timing import Timer
from warploom.core.problem import Problem
from warploom.core.tuning import SCHEMA

__all__ = ["Measured", "environment_of_results", "measure_backends", "rows_of_results", "write_table"]

_NO_CEILINGS = Ceilings(1.0, 1.0)  # tables hold times, not shares
_OF_THE_DEVICE = ("device_type", "arch", "device_name")  # a table is of one GPU


@dataclass(frozen=True)
class Measured:
    """One row to write: an operator, its problem's features, and microseconds by backend, fastest first."""

    operator: str
    at: dict[str, Any]
    us: dict[str, float]


def measure_backends(
    benchmarks: Iterable[Benchmark],
    device: torch.device,
    timer: Timer,
    *,
    quick: bool = False,
    done: Callable[[Benchmark, CaseResult], None] | None = None,
) -> list[Measured]:
    """Verify and time each backend that supports each case.

    Benchmarks whose operator has fewer than two backends besides the reference leave nothing to choose and are skipped,
    as is a backend that gives a wrong result.

    Parameters
    ----------
    done : callable, optional
        Called with each result as it comes.
    """
    rows: dict[tuple[str, str], Measured] = {}
    for benchmark in benchmarks:
        operator = OPERATORS.get(benchmark.operator)
        if operator is None or len(set(operator.backend_names) - {"reference"}) < 2:
            continue
        alone = replace(benchmark, peers=())
        for case in benchmark.cases_for(quick):
            with _problems_of(operator) as seen:
                result = run_case(alone, case, device, timer, _NO_CEILINGS, each_backend=True)
            if done:
                done(benchmark, result)
            us = {one.backend: round(one.timing.us, 2) for one in result.contenders[1:] if one.timing is not None}
            if us and seen:
                at = _features(seen[0])
                rows[operator.name, str(at)] = Measured(
                    operator.name, at, dict(sorted(us.items(), key=lambda item: item[1]))
                )
    return list(rows.values())


def rows_of_results(document: dict[str, Any], operators: dict[str, str]) -> list[Measured]:
    """The rows that a saved benchmark of each backend gives: a run of several ranks can't write a table of all sizes.

    Parameters
    ----------
    document : dict
        What ``tools/bench --backends --out`` has written as JSON.
    operators : dict
        The operator of each benchmark.
    """
    gpus = int(document["environment"].get("gpus", 1))
    rows = []
    for result in document["results"]:
        name = operators.get(result["benchmark"], "")
        if name not in OPERATORS:
            continue
        timed = [one for one in result["contenders"] if one["name"].startswith("warploom:") and "us" in one]
        us = {one["backend"]: round(one["us"], 1) for one in sorted(timed, key=lambda one: one["us"])}
        at = {**({"size": gpus} if gpus > 1 else {}), **result["case"]}
        if len(us) > 1:
            rows.append(Measured(name, at, us))
    return rows


def environment_of_results(documents: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Where saved benchmarks that make one table were measured: on one kind of GPU, perhaps at several commits, all named.

    Raises
    ------
    ValueError
        They are of different GPUs.
    """
    environments = [document["environment"] for document in documents]
    joined = {
        key: ", ".join(dict.fromkeys(environment[key] for environment in environments))
        for key in ("device", "commit", "torch", "date")
    }
    if joined["device"] != environments[0]["device"]:
        raise ValueError(f"a table is of one kind of GPU; these results are of {joined['device']}")
    return joined


@contextlib.contextmanager
def _problems_of(operator: Operator) -> Iterator[list[Problem]]:
    """Collect the problems that calls describe to an operator, which is how a case's features are learnt."""
    seen: list[Problem] = []

    def select(problem: Problem, backend: str = "auto") -> Any:
        seen.append(problem)
        return Operator.select(operator, problem, backend)

    operator.forget()  # a call that is known is not described again
    operator.select = select  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        del operator.select


def _features(problem: Problem) -> dict[str, Any]:
    return {
        name: value if isinstance(value, (str, bool, int, float)) else str(value)
        for name, value in problem.tuning_features().items()
        if name not in _OF_THE_DEVICE
    }


def write_table(path: Path, rows: Iterable[Measured], gpu: str, provenance: dict[str, str]) -> None:
    """Write a tuning table; operators of an existing file that were not measured now are kept with their provenance.

    Parameters
    ----------
    provenance : dict
        ``commit``, ``torch`` and ``date`` of these measurements.
    """
    import yaml

    operators: dict[str, Any] = {}
    if path.exists():
        operators = yaml.safe_load(path.read_text()).get("operators", {})
    fresh: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        fresh.setdefault(row.operator, []).append({"at": row.at, "us": row.us})
    for name, entries in fresh.items():
        operators[name] = {**{key: provenance[key] for key in ("commit", "torch", "date")}, "rows": entries}
    document = {"schema": SCHEMA, "gpu": gpu, "operators": dict(sorted(operators.items()))}
    path.parent.mkdir(parents=True, exist_ok=True)
    # No aliases and mappings of plain values on one line: the file is reviewed by people.
    dumper = type("Dumper", (yaml.SafeDumper,), {"ignore_aliases": lambda self, data: True})
    path.write_text(yaml.dump(document, Dumper=dumper, sort_keys=False, default_flow_style=None, width=120))
