"""Benchmarks of every family against the libraries that are installed.

    python tools/bench                      everything
    python tools/bench sampling gemm        some suites (a suite is a file or a package beside this one)
    python tools/bench sampling --filter softmax --quick
    python tools/bench sampling --targets   only the cases that have a target
    mpirun -n 8 python tools/bench comm     collectives, one GPU a rank

Each case is verified against the reference and then timed with the L2 flushed, in CUDA graphs, and by direct calls; the
machine's own ceilings are measured in the same run. Tables go to the terminal; --out writes JSON, a Markdown page and a
chart.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch

from warploom.core.bench.ceilings import measure_ceilings
from warploom.core.bench.chart import draw_chart
from warploom.core.bench.definition import Benchmark
from warploom.core.bench.environment import describe_environment, pick_device
from warploom.core.bench.ranks import Ranks, current_ranks
from warploom.core.bench.report import Report, case_table, target_table
from warploom.core.bench.runner import CaseResult, run_cases
from warploom.core.bench.suites import load_suite, suite_names
from warploom.core.bench.timing import make_timer
from warploom.core.jit.build import Progress
from warploom.core.testing.grids import label

FOLDER = Path(__file__).parent


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    ranks = current_ranks()
    suites = load_suites(options.suites, ranks)
    if options.list:
        list_cases(suites, options)
        return 0
    device = pick_device(options.device, ranks.rank)
    report = Report(describe_environment(device, options.commit))
    try:
        with torch.no_grad():
            failed = run(suites, options, device, ranks, report)
    except KeyboardInterrupt:
        print("\ninterrupted; what was measured so far follows", file=sys.stderr)
        failed = True
    if ranks.rank == 0 and options.out:
        write(report, options.out, "-".join(options.suites) or "all")
    return int(failed)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "tools/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suites", nargs="*", help=f"of {', '.join(suite_names(FOLDER))}; default: all")
    parser.add_argument(
        "--filter", default="", metavar="REGEX", help="only cases whose 'benchmark case' matches, as in --list"
    )
    parser.add_argument("--quick", action="store_true", help="the quick cases and less time on each")
    parser.add_argument("--targets", action="store_true", help="only the cases that have a target")
    parser.add_argument(
        "--backends", action="store_true", help="time every backend of ours, not only what 'auto' takes"
    )
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="time ours alone")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--graph", action="store_true", default=True, help="time CUDA-graph replays (default)")
    mode.add_argument("--eager", dest="graph", action="store_false", help="time direct calls")
    parser.add_argument(
        "--device", default="", help="cuda, cuda:1 or cpu (wall-clock smoke test); default: cuda if there"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write JSON, Markdown and a chart here")
    parser.add_argument("--commit", default="", help="commit to name in the results, where git can't be asked")
    parser.add_argument("--list", action="store_true", help="list the cases and end")
    options = parser.parse_args(argv)
    unknown = set(options.suites) - set(suite_names(FOLDER))
    if unknown:
        parser.error(f"no suite {', '.join(sorted(unknown))}; there are {', '.join(suite_names(FOLDER))}")
    try:
        options.pattern = re.compile(options.filter)
    except re.error as error:
        parser.error(f"--filter: {error}")
    return options


def load_suites(wanted: Sequence[str], ranks: Ranks) -> dict[str, ModuleType]:
    """Import the suites. One whose family is missing is left out with a note, unless it was asked for by name."""
    suites = {}
    for name in wanted or suite_names(FOLDER):
        try:
            suites[name] = load_suite(FOLDER, name)
        except ModuleNotFoundError as error:
            if wanted:
                raise SystemExit(f"tools/bench: suite {name}: {error}") from None
            if ranks.rank == 0:
                print(f"suite {name} left out: {error}", file=sys.stderr)
    return suites


def run(
    suites: dict[str, ModuleType], options: argparse.Namespace, device: torch.device, ranks: Ranks, report: Report
) -> bool:
    """Run the suites into the report; returns whether one of our results was wrong or failed."""
    quick = options.quick or device.type == "cpu"
    timer = make_timer(device, graph=options.graph, budget_s=0.05 if quick else 0.3, ranks=ranks)
    report.method = {"timing": describe_timing(device, options.graph), "quick": quick, "ranks": ranks.size}
    if any(hasattr(suite, "BENCHMARKS") for suite in suites.values()):
        report.ceilings = measure_ceilings(timer, device)
    if ranks.rank == 0:
        print("\n".join(f"{name}: {value}" for name, value in report.environment.items()))
        print(f"ceilings: {report.ceilings}\n" if report.ceilings else "")
    failed = False
    for name, suite in suites.items():
        if hasattr(suite, "tables"):
            tables = suite.tables(options, device)
            report.tables += tables
            print(*(f"{table.text()}\n" for table in tables), sep="\n")
        results = report.families.setdefault(name, []) if hasattr(suite, "BENCHMARKS") else []
        for benchmark in selected(suite, options, quick):
            progress = Progress(len(benchmark.cases), f"{name}/{benchmark.name}")

            def done(benchmark: Benchmark, result: CaseResult, progress: Progress = progress) -> None:
                progress.step(result.label)

            found = run_cases([benchmark], device, timer, report.ceilings, each_backend=options.backends, done=done)
            results += found
            if ranks.rank == 0:
                print(case_table(f"{name} / {benchmark.name}", found).text() + "\n", flush=True)
            failed |= any(one.ours.problem not in ("", "not supported") for one in found)
    if ranks.rank == 0 and (targets := target_table(report.families)):
        print(targets.text())
    return failed


def selected(suite: ModuleType, options: argparse.Namespace, quick: bool) -> list[Benchmark]:
    """The suite's benchmarks that have cases left by --filter, --targets and --quick, with those cases."""
    chosen = []
    for benchmark in getattr(suite, "BENCHMARKS", []):
        if options.targets:  # which are none of the quick cases
            cases = [case for case in benchmark.cases if benchmark.target and benchmark.target.us(case) is not None]
        else:
            cases = list(benchmark.cases_for(quick))
        cases = [case for case in cases if options.pattern.search(f"{benchmark.name} {label(case)}")]
        if cases:
            chosen.append(replace(benchmark, cases=cases, peers=benchmark.peers if options.peers else ()))
    return chosen


def list_cases(suites: dict[str, ModuleType], options: argparse.Namespace) -> None:
    for name, suite in suites.items():
        for benchmark in selected(suite, options, options.quick):
            peers = ", ".join(peer.name for peer in benchmark.peers)
            print(f"{name} / {benchmark.name}" + (f"  against {peers}" if peers else ""))
            print(*(f"    {benchmark.name} {label(case)}" for case in benchmark.cases), sep="\n")
        if hasattr(suite, "tables"):
            print(f"{name}: {(suite.__doc__ or '').strip().splitlines()[0]}")


def describe_timing(device: torch.device, graph: bool) -> str:
    if device.type == "cpu":
        return "wall-clock on the CPU, a smoke test only"
    calls = "CUDA-graph replays" if graph else "direct calls"
    samples = f"CUDA events around {calls}, L2 flushed before each; median of interleaved rounds"
    return f"{samples}; eager: one direct call after another, without a flush"


def write(report: Report, folder: Path, name: str) -> None:
    paths = report.write(folder, name)
    chart = folder / f"{name}.svg"
    problem = draw_chart(report, chart)
    print("wrote", ", ".join(map(str, paths if problem else [*paths, chart])), f"({problem})" if problem else "")


if __name__ == "__main__":
    sys.exit(main())
