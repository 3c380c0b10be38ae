"""The demo on GPUs, checked against the plain forward pass there."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

Runner = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.gpu
def test_the_demo_passes_its_check_on_a_gpu(run_demo: Runner) -> None:
    done = run_demo("--check", "--device", "cuda", "--max-new-tokens", 40)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ": ok" in done.stdout


@pytest.mark.gpu(count=2)
def test_tensor_parallel_over_two_gpus(run_demo: Runner) -> None:
    done = run_demo("--tensor-parallel", "--check", "--device", "cuda", "--max-new-tokens", 40, ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "on 2 x" in done.stdout
    assert ": ok" in done.stdout
