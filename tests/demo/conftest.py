"""The demo is a program of flat modules: its tests import them as it does itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

DEMO = Path(__file__).parents[2] / "tools" / "demo"
sys.path.insert(0, str(DEMO))

from checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from model import ModelConfig, Transformer  # noqa: E402

TINY = ModelConfig(
    hidden_size=64,
    num_layers=2,
    num_qo_heads=4,
    num_kv_heads=2,
    head_dim=16,
    ffn_size=64,
    expert_size=32,
    context=256,
)


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights, a hundredth of the demo's size, with every kind of layer."""
    path = tmp_path_factory.mktemp("demo") / "tiny.npz"
    model = Transformer(TINY)
    model.initialise(torch.Generator().manual_seed(0))
    save_checkpoint(path, TINY, model.state_dict())
    return path


@pytest.fixture
def tiny(tiny_path: Path) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    """Configuration and weights of `tiny_path`."""
    return load_checkpoint(tiny_path)


@pytest.fixture
def run_demo() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the program as a user does; `launcher` is what stands before python."""

    def run(*args: object, launcher: tuple[str, ...] = (), timeout: float = 60) -> subprocess.CompletedProcess[str]:
        command = [*launcher, sys.executable, str(DEMO), *map(str, args)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
            try:
                out, error = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.terminate()  # not kill: mpirun passes this on to its ranks
                raise
        return subprocess.CompletedProcess(command, process.returncode, out, error)

    return run
