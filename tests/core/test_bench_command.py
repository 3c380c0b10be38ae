"""``python tools/bench``: what it runs, prints and writes, and that the suites of this checkout load."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from warploom.core.bench.suites import load_suite, suite_names

TOOLS = Path(__file__).resolve().parents[2] / "tools"

SUITE = """
import torch
from warploom.core.bench import Benchmark, Peer, Target, Work, grid
BENCHMARKS = [Benchmark(
    "twice", cases=grid(n=[8, 1 << 20]), make=lambda case, device: Work(x=torch.randn(case.n, device=device)),
    ours=lambda work, backend: work.x * {factor}, reference=lambda work: work.x + work.x,
    peers=[Peer("add", fn=lambda work: work.x + work.x)], bytes=lambda work: 2 * work.x.nbytes,
    target=Target("cpu", lambda case: 99999 if case.n == 8 else None))]
"""


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """``python tools/bench`` in this process, over a folder with one suite."""

    def run(*argv: str, factor: int = 2):
        main = runpy.run_path(str(TOOLS / "bench" / "__main__.py"))["main"]
        (tmp_path / "toy.py").write_text(SUITE.format(factor=factor))
        monkeypatch.setitem(main.__globals__, "FOLDER", tmp_path)
        code = main(argv)
        return code, capsys.readouterr().out

    return run


def test_command_prints_and_writes_results(command, tmp_path):
    code, out = command("toy", "--device", "cpu", "--out", str(tmp_path / "out"), "--commit", "abc")
    assert code == 0
    assert "toy / twice" in out
    assert "n8 " in out
    assert "commit: abc" in out
    assert "ceilings: copy" in out
    assert json.loads((tmp_path / "out" / "toy.json").read_text())["results"][0]["contenders"][1]["name"] == "add"


def test_command_fails_when_ours_is_wrong(command):
    code, out = command("--device", "cpu", factor=3)
    assert code == 1
    assert "warploom: WRONG" in out


def test_command_lists_and_filters(command):
    assert command("--list", "--filter", r"twice n8$")[1].split("\n")[:2] == [
        "toy / twice  against add",
        "    twice n8",
    ]
    assert "n1048576" in command("--list")[1]


def test_command_takes_the_cases_with_a_target(command):
    assert command("--list", "--targets")[1].splitlines() == ["toy / twice  against add", "    twice n8"]
    code, out = command("--targets", "--no-peers", "--device", "cpu")
    assert code == 0
    assert "≤ 99999 ok" in out
    assert "add" not in out


@pytest.mark.parametrize(
    ("argv", "message"), [(["nothing"], "no suite nothing; there are toy"), (["--filter", "("], "--filter:")]
)
def test_command_refuses_bad_arguments_in_one_line(command, capsys, argv, message):
    with pytest.raises(SystemExit) as stop:
        command(*argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_suite_may_be_a_package(tmp_path):
    package = tmp_path / "several_files"
    package.mkdir()
    (package / "__init__.py").write_text("from .draws import BENCHMARKS\n")
    (package / "draws.py").write_text("BENCHMARKS = [1, 2]\n")
    (tmp_path / "_helper.py").touch()
    (tmp_path / "no_package").mkdir()
    assert suite_names(tmp_path) == ["several_files"]
    assert load_suite(tmp_path, "several_files").BENCHMARKS == [1, 2]
    with pytest.raises(ModuleNotFoundError, match="no suite"):
        load_suite(tmp_path, "absent")


@pytest.mark.parametrize("name", suite_names(TOOLS / "bench"))
def test_shipped_suites_load(name):
    suite = load_suite(TOOLS / "bench", name)
    assert hasattr(suite, "BENCHMARKS") or hasattr(suite, "tables")
    names = [benchmark.name for benchmark in getattr(suite, "BENCHMARKS", [])]
    assert len(names) == len(set(names))


def test_tune_needs_a_gpu_or_says_so():
    command = [sys.executable, str(TOOLS / "tune"), "jit"]
    done = subprocess.run(command, capture_output=True, text=True, env={"CUDA_VISIBLE_DEVICES": "", "PATH": ""})
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].endswith("measured, never guessed")
