"""The demo and the training script as users start them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoint import DEFAULT_PATH, load_checkpoint
from cli import DEFAULT_PROMPTS, parse_arguments, read_prompts, split_prompts

Runner = Callable[..., subprocess.CompletedProcess[str]]
FEW = ("--max-new-tokens", 6, "--arrival-every", 2)


def test_the_shipped_weights_serve_all_prompts_and_pass_the_check(run_demo: Runner) -> None:
    done = run_demo("--check", "--device", "cpu", "--max-new-tokens", 12, "--arrival-every", 2)
    assert done.returncode == 0, done.stdout + done.stderr
    for number in range(1, len(DEFAULT_PROMPTS) + 1):
        assert f"[{number}] " in done.stdout
    for part in ("tokens/s", "BatchAttention.run", "grouped_mm_bf16", "LogitsPipe", "worst relative error", ": ok"):
        assert part in done.stdout


def test_the_shipped_weights_fit_the_repository() -> None:
    load_checkpoint(DEFAULT_PATH)
    assert DEFAULT_PATH.stat().st_size <= 4_000_000


def test_same_seed_same_text(run_demo: Runner, tiny_path: Path) -> None:
    def text(seed: int) -> str:
        done = run_demo("import ", "--weights", tiny_path, "--device", "cpu", "--temperature", 1, "--seed", seed, *FEW)
        assert done.returncode == 0, done.stderr
        return done.stdout.split("\n\n")[0]

    assert text(1) == text(1) != text(2)


def test_tensor_parallel(run_demo: Runner, tiny_path: Path) -> None:
    done = run_demo("--tensor-parallel", "--check", "--device", "cpu", "--weights", tiny_path, *FEW, ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "on 2 x CPU" in done.stdout
    assert "all_reduce" in done.stdout
    assert ": ok" in done.stdout


def test_several_processes_without_tensor_parallel_are_refused(run_demo: Runner, tiny_path: Path) -> None:
    done = run_demo("--weights", tiny_path, *FEW, ranks=2)
    assert done.returncode != 0
    assert "add --tensor-parallel" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "/nowhere/weights.npz"], "train.py --out"),
        (["--num-pages", "2"], "raise --num-pages"),
        (["--prompts", "/nowhere/prompts.txt"], "No such file"),
        (["--temperature", "-1"], "not 0 or more"),
        (["--top-p", "0"], "not in (0, 1]"),
        (["--max-new-tokens", "0"], "not a positive number"),
        (["--backend", "nonsense"], "no backend 'nonsense'; there are auto,"),
        (["--backend", "nonsense=reference"], "no operator 'nonsense'; there are"),
        (["--backend", "mm_bf16=oneshot"], "'auto' or one of"),
        (["--device", "abacus"], "--device abacus"),
        (["--device", "cuda:99"], "torch sees"),
        (["x" * 5000], "the model's context is"),
    ],
    ids=lambda value: value[0][:12] if isinstance(value, list) else "",
)
def test_wrong_arguments_say_what_to_do(
    arguments: list[str], message: str, tiny_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cli import main

    weights = [] if "--weights" in arguments else ["--weights", str(tiny_path)]
    try:
        status = main([*arguments, *weights])
    except SystemExit as exit_:  # argparse
        status = exit_.code
    assert status == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_prompts_from_lines_blocks_and_the_command_line(tmp_path: Path) -> None:
    assert split_prompts(["a", "", "b"]) == ["a", "b"]
    assert split_prompts(["a", "", " b", "---", "---", "c"]) == ["a\n\n b", "c"]
    path = tmp_path / "prompts.txt"
    path.write_text("from file\n")
    assert read_prompts(parse_arguments(["typed", "--prompts", str(path)])) == ["typed", "from file"]
    assert read_prompts(parse_arguments([])) == list(DEFAULT_PROMPTS)


def test_training_runs_from_nothing_to_a_file(run_demo: Runner, tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    script = DEFAULT_PATH.with_name("train.py")
    done = run_demo("--smoke", "--steps", 2, "--device", "cpu", "--out", path, program=script)
    assert done.returncode == 0, done.stderr
    assert "held-out loss" in done.stdout
    load_checkpoint(path)
