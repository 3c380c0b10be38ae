"""The demo is a program of flat modules: its tests import them as it does itself."""

from __future__ import annotations

import os
import shutil
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

# Open MPI refuses to run as root, and more ranks than cores, unless told otherwise.
OPEN_MPI_SETTINGS = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
}
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
    """Runs the program (or `program`) as a user does, over `ranks` processes of mpirun if that is given."""

    def run(
        *args: object, ranks: int | None = None, program: Path = DEMO, timeout: float = 100
    ) -> subprocess.CompletedProcess[str]:
        launcher = [] if ranks is None else [find_mpirun(), "-n", str(ranks)]
        command = [*launcher, sys.executable, str(program), *map(str, args)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **OPEN_MPI_SETTINGS}
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
            try:
                out, error = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.terminate()  # not kill: mpirun passes this on to its ranks
                raise
        return subprocess.CompletedProcess(command, process.returncode, out, error)

    return run


def find_mpirun() -> str:
    """The one beside this Python, as pip installs it, else the system's."""
    found = shutil.which("mpirun", path=str(Path(sys.executable).parent)) or shutil.which("mpirun")
    if found is None:
        pytest.skip("needs mpirun")
    return found
