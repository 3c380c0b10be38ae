"""The command line, the environment's stamp and the closing counts of `python3 tools/dev`."""

import ast
import json
import subprocess
import sys

import pytest


def dev(folder, *arguments):
    return subprocess.run([sys.executable, folder, *map(str, arguments)], capture_output=True, text=True)


def test_old_python_is_told(folder):
    """The entry point parses on Python 3.6 and leaves before it imports anything newer."""
    source = (folder / "__main__.py").read_text()
    tree = ast.parse(source, feature_version=(3, 6))
    check, late_import = tree.body[2], tree.body[3]
    assert "sys.version_info < (3, 10)" in ast.unparse(check.test)
    assert late_import.module == "cli"


def test_ready_environment_is_not_touched(folder, tmp_path):
    import environment

    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "warploom-dev.json").write_text(json.dumps({"inputs": environment._digest()}))
    done = dev(folder, "install", "--venv", tmp_path)
    assert (done.returncode, done.stdout.startswith("ready: ")) == (0, True)


def test_folder_that_is_no_environment_is_kept(folder, tmp_path):
    (tmp_path / "thesis.txt").touch()
    done = dev(folder, "install", "--venv", tmp_path, "--recreate")
    assert done.returncode == 1
    assert "is no virtual environment" in done.stderr
    assert (tmp_path / "thesis.txt").exists()


def test_unknown_argument_of_test_is_refused(folder):
    done = dev(folder, "test", "--fast")
    assert done.returncode == 2
    assert "unknown arguments: --fast" in done.stderr


def test_demo_gets_what_is_not_ours(monkeypatch):
    import cli

    arguments, rest = cli._parse(["demo", "--venv", "v", "def f():", "--check", "--", "--venv"])
    assert str(arguments.venv) == "v"
    assert rest == ["def f():", "--check", "--venv"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("===== 12 passed, 3 skipped in 4.56s =====\n", {"passed": 12, "skipped": 3}),
        ("\x1b[31m1 failed\x1b[0m, 2 passed, 2 errors in 61.00s (0:01:01)\n", {"failed": 1, "passed": 2, "error": 2}),
        ("3 passed in the end\n", {}),
    ],
)
def test_counts_of_pytests_closing_line(line, expected):
    import checks

    assert dict(checks._counted(line)) == expected


def test_failed_step_shows_the_end_of_the_log(tmp_path, capsys):
    from progress import StepFailed, Steps

    steps = Steps(2, log=tmp_path / "log", folder=tmp_path)
    steps.run("fine", [sys.executable, "-c", "print('quiet')"])
    with pytest.raises(StepFailed) as failure:
        steps.run("broken", [sys.executable, "-c", "print('the reason'); exit(3)"], hint="try this")
    assert all(
        text in str(failure.value) for text in ("the reason", "exited with 3", str(tmp_path / "log"), "try this")
    )
    assert "quiet" not in str(failure.value) + capsys.readouterr().out
