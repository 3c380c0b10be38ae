"""Measure every backend over a family's benchmark cases and write its tuning table.

    python tools/tune sampling gemm                 writes packages/<family>/src/warploom/<family>/tuning/<gpu>.yaml
    python tools/tune sampling --filter softmax     measures one benchmark and keeps the other operators' rows
    python tools/tune comm --results a.json b.json  takes what tools/bench --backends has measured, here with 2 and 4 GPUs

Run it on the GPU that the table is for, from a committed tree: the table names both.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from warploom.core.bench.definition import Benchmark
from warploom.core.bench.environment import describe_environment, pick_device
from warploom.core.bench.runner import CaseResult
from warploom.core.bench.suites import load_suite, suite_names
from warploom.core.bench.timing import make_timer
from warploom.core.bench.tuner import environment_of_results, measure_backends, rows_of_results, write_table

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "tools" / "bench"


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    if options.results:
        return tabulate(options)
    device = pick_device(options.device)
    timer = make_timer(device, budget_s=0.05 if options.quick else 0.2)
    environment = describe_environment(device, options.commit)
    gpu = environment["device"]
    for family in options.families:
        defined = getattr(load_suite(BENCHMARKS, family), "BENCHMARKS", [])
        chosen = [benchmark for benchmark in defined if re.search(options.filter, benchmark.name)]
        with torch.no_grad():
            rows = measure_backends(chosen, device, timer, quick=options.quick, done=show)
        if not rows:
            print(f"{family}: nothing to choose between")
            continue
        path = options.out / f"{family}.yaml" if options.out else table_path(family, gpu)
        write_table(path, rows, gpu, environment)
        print(f"{family}: wrote {len(rows)} rows to {path}")
    return 0


def tabulate(options: argparse.Namespace) -> int:
    """Write the table of one family from saved results of one kind of GPU."""
    (family,) = options.families
    operators = {benchmark.name: benchmark.operator for benchmark in load_suite(BENCHMARKS, family).BENCHMARKS}
    documents = [json.loads(path.read_text()) for path in options.results]
    try:
        environment = environment_of_results(documents)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    rows = [row for document in documents for row in rows_of_results(document, operators)]
    path = options.out / f"{family}.yaml" if options.out else table_path(family, environment["device"])
    write_table(path, rows, environment["device"], environment)
    print(f"{family}: wrote {len(rows)} rows to {path}")
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "tools/tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("families", nargs="+", help="families with a file in tools/bench")
    parser.add_argument("--filter", default="", metavar="REGEX", help="only benchmarks whose name matches")
    parser.add_argument("--quick", action="store_true", help="the quick cases and less time on each, to try the tool")
    parser.add_argument("--device", default="cuda", help="default: cuda")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write DIR/<family>.yaml instead of into the package")
    parser.add_argument("--results", nargs="+", type=Path, metavar="JSON", help="saved results instead of measuring")
    parser.add_argument("--commit", default="", help="commit to name in the table, where git can't be asked")
    options = parser.parse_args(argv)
    for family in options.families:
        if family not in suite_names(BENCHMARKS):
            parser.error(f"no benchmarks of {family!r}; there are {', '.join(suite_names(BENCHMARKS))}")
    if options.results and len(options.families) > 1:
        parser.error("--results are of one family")
    if not options.results and options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("needs an NVIDIA GPU: a tuning table is measured, never guessed")
    return options


def table_path(family: str, gpu: str) -> Path:
    """``tuning/h200.yaml`` for "NVIDIA H200"."""
    name = re.sub(r"[^a-z0-9]+", "_", gpu.lower().removeprefix("nvidia ")).strip("_")
    return ROOT / "packages" / family / "src" / "warploom" / family / "tuning" / f"{name}.yaml"


def show(benchmark: Benchmark, result: CaseResult) -> None:
    times = ", ".join(
        f"{one.backend} {one.timing.us:.1f} us" if one.timing else f"{one.backend}: {one.problem}"
        for one in result.contenders[1:]
    )
    print(f"  {benchmark.name} {result.label}: {times}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
