"""Reports and charts hold what was measured: columns, targets met and missed, lines over an axis, bars."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

from warploom.core.bench.ceilings import Ceilings
from warploom.core.bench.chart import draw_chart
from warploom.core.bench.report import Report, Table, case_table, detail_lines, target_table
from warploom.core.bench.runner import CaseResult, Contender
from warploom.core.bench.timing import Timing

CEILINGS = Ceilings(4000.0, 3000.0, {"bf16": 800.0}, 2.0)


def timing(us: float, eager_us: float | None = None, mode: str = "graph") -> Timing:
    return Timing(us, us * 0.9, us * 1.1, 7, mode, 1.5, eager_us)


def measured(
    ours: Timing | None, *peers: Contender, axis: str = "", target_us: float | None = None, **case
) -> CaseResult:
    """A case that moves 256 kB, in 64 ns at best."""
    contenders = [Contender("warploom", "cuda", ours, "" if ours else "WRONG: NaN"), *peers]
    return CaseResult("scale", SimpleNamespace(**case), 256e3, 0.0, 0.064, contenders, axis, target_us)


ADD, SLOW = Contender("add", timing=timing(6.0)), Contender("slow", timing=timing(9.0))


@pytest.fixture
def report():
    results = [measured(timing(4.0), ADD, SLOW, n=32), measured(timing(5.0), ADD, n=64)]
    table = Table("wheels", ("wheel", "kB"), [["warploom_core", "78"]], ["a note"])
    return Report({"device": "NVIDIA H200", "commit": "abc"}, CEILINGS, {"quick": False}, {"toy": results}, [table])


def test_reports_hold_the_numbers_in_every_form(report, tmp_path):
    data, page = report.write(tmp_path / "new", "toy")
    loaded = json.loads(data.read_text())
    first = loaded["results"][0]
    assert (first["family"], first["case"], first["ratio_to_best_peer"]) == ("toy", {"n": 32}, 1.5)
    assert [one["us"] for one in first["contenders"]] == [4.0, 6.0, 9.0]
    assert loaded["ceilings"]["copy_gbs"] == 4000.0
    assert loaded["environment"]["device"] == "NVIDIA H200"
    text = page.read_text()
    assert "| n32 | 4.0 | 3.6–4.4 | 64 GB/s | 2% | 1.5 | cuda | add | 6.0 | 1.50× |" in text
    assert "- n32: slow 9.0 us" in text
    assert "| warploom_core | 78 |" in text
    assert "- a note" in text


def test_text_tables_are_aligned(report):
    lines = report.all_tables()[0].text().splitlines()
    assert lines[0] == "toy / scale"
    assert lines[1].split()[:2] == ["case", "us"]
    assert lines[2].index("4.0") == lines[1].index("us") - 1


def test_direct_calls_have_columns_beside_the_graphs():
    peer = Contender("add", timing=timing(6.0, eager_us=25.0))
    table = case_table("toy", [measured(timing(4.0, eager_us=31.0), peer, n=32)])
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert (row["us"], row["eager us"], row["its us"], row["its eager us"]) == ("4.0", "31.0", "6.0", "25.0")
    assert "target" not in row
    assert not {"eager us", "its eager us"} & set(case_table("toy", [measured(timing(4.0), ADD, n=32)]).columns)


def test_what_could_not_be_captured_is_marked():
    synchronising = Contender("sort", timing=timing(90.0, eager_us=95.0, mode="eager"))
    table = case_table("toy", [measured(timing(4.0), ADD, synchronising, n=32)])
    assert table.notes == ["n32: sort 90.0 us (eager), eager 95.0"]


def test_targets_are_met_or_missed_in_a_table_of_their_own(tmp_path):
    met, missed = measured(timing(4.0), ADD, n=32, target_us=4.0), measured(timing(5.0), ADD, n=64, target_us=4.5)
    without, wrong = measured(timing(5.0), ADD, n=128), measured(None, ADD, n=256, target_us=4.0)
    assert [one.met for one in (met, missed, without, wrong)] == [True, False, None, None]
    table = target_table({"toy": [met, missed, without, wrong]})
    assert [(row[0], row[2], row[3]) for row in table.rows] == [
        ("toy / scale n32", "4.0", "≤ 4 ok"),
        ("toy / scale n64", "5.0", "≤ 4.5 missed"),
        ("toy / scale n256", "–", "≤ 4"),
    ]
    assert target_table({"toy": [without]}) is None
    report = Report({}, CEILINGS, {}, {"toy": [met, missed, without]})
    assert report.all_tables()[0].title == "Targets"
    assert [row[5] for row in report.all_tables()[1].rows] == ["≤ 4 ok", "≤ 4.5 missed", "–"]
    assert [one["target_met"] for one in report.as_json()["results"]] == [True, False, None]


def test_who_is_left_out_everywhere_is_noted_once():
    absent, large = Contender("lib", problem="not installed"), Contender("sort", problem="left out for its time")
    results = [measured(timing(4.0), absent, n=32), measured(timing(5.0), absent, large, n=64)]
    assert case_table("toy", results).notes == ["lib: not installed", "n64: sort: left out for its time"]
    assert detail_lines(results[0]) == ["n32: lib: not installed"]


# --- Charts ---


def test_without_times_or_matplotlib_there_is_no_chart(report, tmp_path, monkeypatch):
    path = tmp_path / "toy.svg"
    assert draw_chart(Report({}), path) == "no chart: nothing was timed"
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install" in draw_chart(report, path)
    assert not path.exists()


def drawn(path, *results: CaseResult) -> str:
    """The text of a chart."""
    pytest.importorskip("matplotlib")
    report = Report({"device": "NVIDIA H200", "commit": "abc"}, CEILINGS, {}, {"toy": list(results)})
    assert draw_chart(report, path) == ""
    return path.read_text()


def test_bars_are_labelled_by_case_and_contender(report, tmp_path):
    text = drawn(tmp_path / "toy.svg", *report.families["toy"], measured(None, n=96))
    for label in ("toy / scale", "NVIDIA H200, commit abc", "n32", "n64", "warploom", "add", "slow"):
        assert f">{label}</text>" in text
    assert "n96" not in text


def test_lines_go_over_the_axis_for_each_setting_of_the_rest(tmp_path):
    def case(batch, **rest):
        ours, peer = timing(float(batch), eager_us=20.0), Contender("add", timing=timing(2.0 * batch))
        return measured(ours, peer, axis="batch", target_us={8: 9.0}.get(batch), batch=batch, **rest)

    lines = [case(batch, logits=logits) for batch in (1, 8, 64) for logits in ("flat", "peaked")]
    text = drawn(tmp_path / "toy.svg", *lines, case(8, logits="other"))
    for label in ("logits_flat", "logits_peaked", "batch", "add", "target", "warploom, direct calls"):
        assert f">{label}</text>" in text
    assert "logits_other" not in text  # a single point is no line
    assert ">batch8" not in text  # no bars


def test_cases_that_no_line_connects_have_bars(tmp_path):
    text = drawn(tmp_path / "toy.svg", *(measured(timing(4.0), axis="batch", batch=8, n=n) for n in (32, 64)))
    assert ">batch8-n32</text>" in text
