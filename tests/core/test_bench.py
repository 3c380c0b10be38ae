"""The harness: wrong results are never timed, numbers follow from times, tables from measurements."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest
import torch

from warploom.core.backends import OPERATORS, Backend, Operator, Support
from warploom.core.bench import Benchmark, Peer, Target, Timing, Work, grid, host_time_us, make_timer
from warploom.core.bench.ceilings import Ceilings, limit_us, measure_ceilings
from warploom.core.bench.environment import commit_of, describe_environment
from warploom.core.bench.outputs import poison, require_written
from warploom.core.bench.ranks import Ranks, current_ranks
from warploom.core.bench.runner import run_case, run_cases
from warploom.core.bench.timing import CpuTimer, Timer, direct_times_us
from warploom.core.bench.tuner import environment_of_results, measure_backends, rows_of_results, write_table
from warploom.core.device import device_name
from warploom.core.problem import Problem
from warploom.core.testing import random_normal
from warploom.core.tuning import load_table

CPU = torch.device("cpu")
CEILINGS = Ceilings(4000.0, 3000.0, {"bf16": 800.0}, 2.0)


class FakeTimer(Timer):
    """Times that a table dictates; remembers what it was asked to time."""

    def __init__(self, us: Mapping[str, float]) -> None:
        self.us, self.asked = us, []

    def time(self, contenders, *, calls=1, flush=True):
        self.asked += contenders
        for call in contenders.values():
            call()
        return {
            name: Timing(self.us[name], self.us[name] * 0.9, self.us[name] * 1.1, 7, "graph", 1.5, 20.0)
            for name in contenders
        }


@dataclass(frozen=True, kw_only=True)
class ScaleProblem(Problem):
    n: int
    dtype: torch.dtype


class Scale(Backend):
    name = "cuda"
    factor = 2.0

    def supports(self, problem):
        return Support.of((problem.n <= 64, "n is over 64"))

    def run(self, problem, x, out):
        torch.mul(x, self.factor, out=out)


class Wrong(Scale):
    name = "wrong"
    factor = 3.0


class Library(Scale):
    name = "torch"

    def supports(self, problem):
        return Support()


class Reference(Library):
    name = "reference"


@pytest.fixture
def operator():
    operator = Operator("bench_scale", family="toy", backends=(Scale(), Wrong(), Library(), Reference()))
    yield operator
    del OPERATORS["bench_scale"]


def scale_benchmark(served_by: Operator, **changes) -> Benchmark:
    def make(case, device):
        return Work(x=random_normal((case.n,), device=device), out=torch.empty(case.n, device=device))

    def ours(work, backend):
        served_by.call(lambda x, out: ScaleProblem(n=len(x), dtype=x.dtype), backend, (work.x, work.out))
        return work.out

    peers = [Peer("add", fn=lambda work: work.x + work.x), Peer("slow", fn=lambda work: work.x * 2)]
    benchmark = Benchmark(
        "scale", cases=grid(n=[32, 128]), make=make, ours=ours, reference=lambda work: work.x + work.x, peers=peers,
        bytes=lambda work: 2.0 * work.x.nbytes, operator="bench_scale",
    )  # fmt: skip
    return replace(benchmark, **changes)


TIMES = {"warploom": 4.0, "add": 6.0, "slow": 9.0, "warploom:cuda": 4.0, "warploom:torch": 3.0, "warploom:wrong": 1.0}


def test_a_case_reports_ours_peers_ratio_and_share(operator):
    result = run_case(scale_benchmark(operator), *grid(n=[32]), CPU, FakeTimer(TIMES), CEILINGS)
    assert (result.ours.backend, result.best_peer.name, result.ratio) == ("cuda", "add", 1.5)
    assert result.bytes == 256
    assert result.limit_us == pytest.approx(256 / 4e6)
    assert result.rate(result.ours) == (pytest.approx(0.064), "GB/s")
    assert result.share(result.ours) == pytest.approx(256 / 4e6 / 4)


def test_the_limit_is_the_slower_of_bytes_and_operations():
    assert limit_us(CEILINGS, 4e9, 8e11, "bf16") == 1000.0
    assert limit_us(CEILINGS, 4e9, 8e12, "bf16") == 10_000.0
    assert limit_us(CEILINGS, 0.0, 8e12, "fp8") == 10_000.0  # a type whose rate was not measured takes the best known


def test_results_keep_no_inputs_alive(operator):
    works = []

    def make(case, device):
        work = Work(x=random_normal((case.n,)), out=torch.empty(case.n))
        works.append(weakref.ref(work.x))
        return work

    results = run_cases([scale_benchmark(operator, make=make)], CPU, FakeTimer(TIMES), CEILINGS)
    assert len(results) == len(works) == 2
    assert [work() for work in works] == [None, None]


def test_wrong_results_are_reported_and_not_timed(operator):
    bad = Peer("bad", fn=lambda work: work.x * 3)
    lazy = Peer("lazy", fn=lambda work: work.out)  # writes nothing: meets the poison
    broken = Peer("broken", fn=lambda work: 1 / 0)
    absent = Peer("absent", fn=lambda work: None, available=lambda work: "not installed")
    other = Peer("other", fn=lambda work: work.x * 5, verified=False)
    timer = FakeTimer(TIMES | {"other": 1.0})
    benchmark = scale_benchmark(operator, peers=[bad, lazy, broken, absent, other])
    result = run_case(benchmark, *grid(n=[32]), CPU, timer, CEILINGS)
    problems = {one.name: one.problem for one in result.contenders}
    assert problems["bad"].startswith("WRONG: 32 of 32 elements differ")
    assert problems["lazy"].startswith("WRONG: NaN at different places")
    assert problems["broken"] == "failed: ZeroDivisionError: division by zero"
    assert problems["absent"] == "not installed"
    assert timer.asked == ["warploom", "other"]


def test_ours_is_verified_too(operator):
    benchmark = scale_benchmark(operator, ours=lambda work, backend: work.x * 2.5)
    result = run_case(benchmark, *grid(n=[32]), CPU, FakeTimer(TIMES), CEILINGS)
    assert result.ours.problem.startswith("WRONG")
    assert result.ratio is None


def test_each_backend_is_timed_where_it_is_right_and_supported(operator):
    results = run_cases([scale_benchmark(operator)], CPU, FakeTimer(TIMES), CEILINGS, each_backend=True)
    small, large = ({one.name: one for one in result.contenders} for result in results)
    assert small["warploom:torch"].timing.us == 3.0
    assert small["warploom:wrong"].problem.startswith("WRONG")
    assert large["warploom:cuda"].problem == "not supported"
    assert "warploom:reference" not in large
    assert results[0].best_peer.name == "add"


def test_peer_results_may_be_brought_into_form_outside_the_timing(operator):
    peer = Peer("add", fn=lambda work: (work.x * 2).view(-1, 2), output=lambda result: result.view(-1))
    result = run_case(scale_benchmark(operator, peers=[peer]), *grid(n=[32]), CPU, FakeTimer(TIMES), CEILINGS)
    assert result.best_peer.name == "add"


def test_several_results_are_compared_one_by_one(operator):
    def pair(work, *_):
        return work.x, work.x * 2

    right = scale_benchmark(operator, ours=pair, reference=pair, peers=[])
    skipped = replace(right, reference=lambda work: (None, work.x * 2))
    wrong = replace(right, reference=lambda work: (work.x, work.x))
    short = replace(right, reference=lambda work: (work.x,))
    problems = [
        run_case(b, *grid(n=[32]), CPU, FakeTimer(TIMES), CEILINGS).ours.problem for b in (right, skipped, wrong, short)
    ]
    assert problems[:2] == ["", ""]
    assert "result 1" in problems[2]
    assert "got 2 results, expected 1" in problems[3]


def test_a_target_is_of_one_gpu_and_met_by_the_graph_time(operator):
    target = Target(gpu=device_name(CPU), us=lambda case: {32: 4.0}.get(case.n))
    run = {"device": CPU, "timer": FakeTimer(TIMES), "ceilings": CEILINGS}
    small, large = run_cases([scale_benchmark(operator, target=target)], **run)
    assert (small.target_us, small.met) == (4.0, True)
    assert (large.target_us, large.met) == (None, None)
    missed = run_cases([scale_benchmark(operator, target=replace(target, us=lambda case: 3.9))], **run)
    assert [result.met for result in missed] == [False, False]
    elsewhere = run_cases([scale_benchmark(operator, target=replace(target, gpu="NVIDIA H200"))], **run)
    assert [result.target_us for result in elsewhere] == [None, None]


def rows_benchmark(operator, ours, **changes):
    """Sums of rows, of which the first two are compared."""

    def make(case, device):
        return Work(x=random_normal((case.n, 4)), out=torch.empty(case.n))

    return scale_benchmark(
        operator, make=make, ours=lambda work, backend: ours(work), reference=lambda work: work.x.sum(1), peers=[],
        check_rows=2, cases=grid(n=[5]), **changes,
    )  # fmt: skip


def sum_rows(work, rows=slice(None), scale=1.0):
    work.out[rows] = work.x[rows].sum(1) * scale
    return work.out


def test_the_reference_sees_the_checked_rows_alone(operator):
    seen = []

    def reference(work):
        seen.append((work.x.shape[0], work.out.shape[0], work.case.n))
        return work.x.sum(1)

    benchmark = replace(rows_benchmark(operator, sum_rows), reference=reference)
    assert run_case(benchmark, *benchmark.cases, CPU, FakeTimer(TIMES), CEILINGS).ours.problem == ""
    assert seen == [(2, 2, 5)]


@pytest.mark.parametrize(
    ("ours", "problem"),
    [
        (lambda work: sum_rows(work, scale=2.0), "WRONG: 2 of 2 elements differ"),
        (lambda work: sum_rows(work, slice(0, 3)), "WRONG: 2 of 5 rows were not written, the first is 3"),
    ],
    ids=["wrong in the checked rows", "other rows left out"],
)
def test_checked_rows_are_compared_and_the_others_written(operator, ours, problem):
    benchmark = rows_benchmark(operator, ours)
    result = run_case(benchmark, *benchmark.cases, CPU, FakeTimer(TIMES), CEILINGS)
    assert result.ours.problem.startswith(problem)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32, torch.int64])
def test_rows_that_were_not_written_are_found_in_every_dtype(dtype):
    outputs = torch.zeros(4, 3, dtype=dtype), torch.zeros(4, dtype=dtype)
    poison(outputs)
    for out in outputs:
        out[:3] = 1
    require_written(outputs, after=4)
    for out in outputs:
        with pytest.raises(AssertionError, match="1 of 4 rows were not written, the first is 3"):
            require_written(out, after=1)


def test_quick_runs_take_the_quick_cases(operator):
    benchmark = scale_benchmark(operator)
    assert [case.n for case in benchmark.cases_for(True)] == [32]
    assert [case.n for case in replace(benchmark, quick=grid(n=[8])).cases_for(True)] == [8]
    assert [case.n for case in benchmark.cases_for(False)] == [32, 128]


def test_a_contender_that_another_rank_cannot_run_is_left_out(operator):
    class OtherRankFails(Ranks):
        size = 2

        def max(self, value):
            return 1.0

    timer = FakeTimer(TIMES)
    timer.ranks = OtherRankFails()
    result = run_case(scale_benchmark(operator), *grid(n=[32]), CPU, timer, CEILINGS)
    assert {one.problem for one in result.contenders} == {"not on every rank"}
    assert timer.asked == []


def test_ranks_take_as_many_samples_as_the_slowest_has_time_for():
    class OtherRankIsSlow(Ranks):
        size = 2

        def max(self, value):
            return max(value, 10.0)

    alone, together = CpuTimer(0.1), CpuTimer(0.1, OtherRankIsSlow())
    assert together.time({"nothing": lambda: None})["nothing"].samples == 7
    assert alone.time({"nothing": lambda: None})["nothing"].samples > 70


def test_limits_of_links_count(operator):
    benchmark = scale_benchmark(operator)
    (case,) = grid(n=[32])
    free = run_case(benchmark, case, CPU, FakeTimer(TIMES), CEILINGS)
    linked = run_case(replace(benchmark, least_us=lambda work: 1e6), case, CPU, FakeTimer(TIMES), CEILINGS)
    assert free.limit_us < 1e6 == linked.limit_us


def test_a_single_process_is_its_own_rank(monkeypatch):
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK"):
        monkeypatch.delenv(name, raising=False)
    ranks = current_ranks()
    ranks.barrier()
    assert (ranks.rank, ranks.size, ranks.max(3.0)) == (0, 1, 3.0)


def test_timing_takes_median_and_percentiles():
    timing = Timing.of([float(i) for i in range(100, -1, -1)], "wall", 1.0)
    assert (timing.us, timing.p10, timing.p90, timing.samples) == (50.0, 10.0, 90.0, 101)
    assert Timing.of([3.0], "wall", 1.0).p90 == 3.0


def test_cpu_timer_orders_short_and_long_work():
    short, long = torch.ones(8), torch.ones(1 << 20)
    timings = make_timer(CPU, budget_s=0.02).time({"short": lambda: short + 1, "long": lambda: long + 1})
    assert timings["short"].us < timings["long"].us
    assert all(t.mode == "wall" and t.p10 <= t.us <= t.p90 and t.samples >= 5 for t in timings.values())


def test_direct_calls_are_timed_apart_on_gpus_alone():
    timing = make_timer(CPU, budget_s=0.01).time({"add": lambda: torch.ones(8) + 1})["add"]
    assert timing.eager_us is None
    host_us, eager_us = direct_times_us(lambda: torch.ones(8) + 1, calls=5, batches=3)
    assert host_us == eager_us > 0


def test_host_time_measures_the_call():
    calls = []
    assert 0 < host_time_us(lambda: calls.append(1), calls=10, batches=3) < 1000
    assert len(calls) == 31


def test_ceilings_of_this_machine_are_positive():
    ceilings = measure_ceilings(CpuTimer(budget_s=0.01), CPU)
    assert ceilings.memory_gbs == max(ceilings.copy_gbs, ceilings.read_gbs) > 0
    assert ceilings.tflops["fp32"] > 0
    assert "copy" in str(ceilings)


def test_environment_names_device_versions_and_commit(tmp_path):
    environment = describe_environment(CPU, commit="abc")
    assert environment["commit"] == "abc"
    assert environment["torch"] == torch.__version__
    assert environment["device"].startswith("CPU")
    assert {type(value) for value in environment.values()} == {str}  # tuning tables are YAML
    assert "warploom-core" in environment
    assert commit_of(tmp_path) == "unknown"


def test_tuner_writes_what_lookup_reads(operator, tmp_path):
    lines = []
    rows = measure_backends([scale_benchmark(operator)], CPU, FakeTimer(TIMES), done=lambda b, r: lines.append(r.label))
    assert lines == ["n32", "n128"]
    assert [(row.at, row.us) for row in rows] == [
        ({"n": 32, "dtype": "float32"}, {"torch": 3.0, "cuda": 4.0}),
        ({"n": 128, "dtype": "float32"}, {"torch": 3.0}),
    ]
    assert "select" not in vars(operator)
    again = measure_backends([scale_benchmark(operator)], CPU, FakeTimer(TIMES))
    assert again == rows  # though all calls are known by now
    path = tmp_path / "tuning" / "h200.yaml"
    provenance = {"commit": "1234567890", "torch": "2.11", "date": "2026-11-21", "python": "3.11"}
    write_table(path, rows, "NVIDIA H200", provenance)
    write_table(path, [replace(rows[0], operator="another")], "NVIDIA H200", provenance | {"commit": "new"})
    table = load_table(path)
    assert list(table.operators) == ["another", "bench_scale"]
    assert table.nearest("bench_scale", {"n": 30, "dtype": "float32"}).order == ("torch", "cuda")
    assert path.read_text().count("commit: '1234567890'") == 1
    assert path.read_text().count("commit: new") == 1
    assert "- at: {n: 32, dtype: float32}" in path.read_text()


def test_tuner_skips_what_leaves_no_choice(operator):
    single = Operator("bench_single", family="toy", backends=(Scale(), Reference()))
    try:
        assert measure_backends([scale_benchmark(single, operator="bench_single")], CPU, FakeTimer(TIMES)) == []
        assert measure_backends([scale_benchmark(operator, operator="unknown")], CPU, FakeTimer(TIMES)) == []
    finally:
        del OPERATORS["bench_single"]


def test_tables_are_made_of_saved_results(operator):
    def contender(name, **times):
        return {"name": name, "backend": name.partition(":")[2], **times}

    document = {
        "environment": {"gpus": "4"},
        "results": [
            {
                "benchmark": "scaling",
                "case": {"n": 32},
                "contenders": [
                    contender("warploom", us=1.0),
                    contender("warploom:slow", us=3.04),
                    contender("warploom:fast", us=1.0),
                    contender("warploom:absent"),
                    contender("a peer", us=0.5),
                ],
            },
            {"benchmark": "another", "case": {"n": 32}, "contenders": []},
        ],
    }
    (row,) = rows_of_results(document, {"scaling": operator.name})
    assert row.at == {"size": 4, "n": 32}
    assert list(row.us.items()) == [("fast", 1.0), ("slow", 3.0)]
    alone = {**document, "environment": {}}
    assert rows_of_results(alone, {"scaling": operator.name})[0].at == {"n": 32}


def test_a_table_of_several_results_names_all_commits_and_one_gpu():
    first = {"device": "NVIDIA H200", "commit": "abc1234", "torch": "2.11", "date": "2026-11-22", "gpus": 2}
    others = [{**first, "commit": "def5678", "gpus": 4}, {**first, "gpus": 8}]
    joined = environment_of_results([{"environment": environment} for environment in (first, *others)])
    assert joined == {"device": "NVIDIA H200", "commit": "abc1234, def5678", "torch": "2.11", "date": "2026-11-22"}
    with pytest.raises(ValueError, match="NVIDIA H200, NVIDIA B200"):
        environment_of_results([{"environment": first}, {"environment": {**first, "device": "NVIDIA B200"}}])
