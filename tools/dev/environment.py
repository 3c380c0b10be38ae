"""The development environment: a virtual environment in the checkout with torch, the five packages and the tools."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch_build
from progress import StepFailed, Steps

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("core", "attention", "gemm", "comm", "sampling")
_STAMP = "warploom-dev.json"


@dataclass(frozen=True)
class Environment:
    """A virtual environment."""

    path: Path

    @property
    def executable(self) -> Path:
        return self.path / "bin" / "python"

    def tool(self, name: str) -> Path:
        return self.path / "bin" / name

    def variables(self, **more: str) -> dict[str, str]:
        """The process environment for commands in it: its tools first, nothing of another Python's settings."""
        foreign = ("PYTHONHOME", "PYTHONPATH", "PIP_USER", "PIP_TARGET", "PIP_PREFIX")
        env = {name: value for name, value in os.environ.items() if name not in foreign}
        env["VIRTUAL_ENV"] = str(self.path)
        env["PATH"] = f"{self.path / 'bin'}{os.pathsep}{env.get('PATH', os.defpath)}"
        return {**env, **more}


def prepare(path: Path, *, recreate: bool = False, any_torch: bool = False) -> Environment:
    """Make the environment, or bring it up to date; when nothing changed since, only compare a stamp."""
    environment = Environment(path.absolute())
    with _locked(environment.path):
        if recreate:
            _delete(environment.path)
        stamp = environment.path / _STAMP
        wanted = {"inputs": _digest()}
        if environment.executable.exists() and stamp.exists() and stamp.read_text() == json.dumps(wanted):
            return environment
        _install(environment, any_torch)
        stamp.write_text(json.dumps(wanted))
    return environment


def install_offline(python: Path) -> None:
    """Install the five packages, editable, into an existing Python that has their dependencies already."""
    needed = {"torch": "torch", "numpy": "numpy", "yaml": "pyyaml", "setuptools": "setuptools", "wheel": "wheel",
              "cuda.bindings": "cuda-bindings", "cuda.pathfinder": "cuda-pathfinder"}  # fmt: skip
    missing = [distribution for module, distribution in needed.items() if not _importable(module)]
    if missing:
        raise StepFailed(f"{python} lacks {', '.join(missing)}, and --offline downloads nothing: install them first.")
    steps = Steps(1, log=Path(tempfile.gettempdir()) / "warploom-install.log", folder=ROOT)
    pip = [python, "-m", "pip", "install", "--no-index", "--no-build-isolation", "--no-deps"]
    steps.run("the five packages, from the checkout", [*pip, *_editable()])


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False


def _install(environment: Environment, any_torch: bool) -> None:
    env = environment.variables()
    python = environment.executable
    print(f"Setting up {environment.path} with Python {sys.version_info[0]}.{sys.version_info[1]}")
    steps = Steps(5, log=environment.path / "install.log", folder=ROOT)
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check"]

    steps.run("environment", *_creation(environment), [*pip, "--upgrade", "pip", "setuptools", "wheel"], env=env)
    choice = steps.ask("which torch suits this machine", lambda: torch_build.choose(python, env, any_torch))
    if _has_torch(environment):
        steps.run("torch, installed before", [python, "-c", "import torch"], env=env)
    elif choice.backend is None:
        steps.run(choice.what, [*pip, choice.requirement], env=env)
    else:
        uv = [environment.tool("uv"), "pip", "install", "--python", python, "--torch-backend", choice.backend]
        hint = (
            "pip has no such build for this Python, and uv could not fetch one. Either install a torch for this\n"
            f"machine into {environment.path} yourself, or pass --any-torch to take what pip offers\n"
            "(several GB of CUDA libraries)."
        )
        steps.run(choice.what, [*pip, "uv"], [*uv, choice.requirement], env=env, hint=hint)
    groups = ["--group", "dev"] if _torch_has_cuda(environment) else ["--group", "dev", "--group", "compiler"]
    everything = [*pip, "--no-build-isolation", *_editable(), *groups]
    headers = [*pip, "--no-deps", "--group", "headers"]
    steps.run("Warploom, its dependencies and tools", everything, headers, env=env)
    steps.run("check", [python, "-c", "import torch, warploom.core.backends"], env=env)


def _creation(environment: Environment) -> list[list[object]]:
    """Commands that make the environment with a pip in it; a Python without ensurepip lends its own pip."""
    python = environment.executable
    if python.exists() and subprocess.run([python, "-c", ""], capture_output=True).returncode == 0:
        if subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode == 0:
            return []
        return [[python, "-m", "ensurepip", "--upgrade"]]
    if environment.path.exists() and any(entry.name != "install.log" for entry in environment.path.iterdir()):
        _delete(environment.path)
    if importlib.util.find_spec("ensurepip"):
        return [[sys.executable, "-m", "venv", environment.path]]
    if importlib.util.find_spec("pip"):
        return [
            [sys.executable, "-m", "venv", "--without-pip", environment.path],
            [sys.executable, "-m", "pip", "--python", python, "install", "pip"],
        ]
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    raise StepFailed(
        f"{sys.executable} can make no virtual environment: it has neither ensurepip nor pip.\n"
        f"On Debian and Ubuntu: apt install {version}-venv. Then run this again."
    )


def _editable() -> list[str]:
    return [word for name in PACKAGES for word in ("--editable", str(ROOT / "packages" / name))]


def _has_torch(environment: Environment) -> bool:
    return any(environment.path.glob("lib/python*/site-packages/torch/version.py"))


def _torch_has_cuda(environment: Environment) -> bool:
    show = "import torch; print(torch.version.cuda or '')"
    answer = subprocess.run(
        [environment.executable, "-c", show], capture_output=True, text=True, env=environment.variables()
    )
    return bool(answer.stdout.strip())


def _digest() -> str:
    """Changes when the environment has to be brought up to date."""
    inputs = [ROOT / "pyproject.toml", *(ROOT / "packages" / name / "pyproject.toml" for name in PACKAGES)]
    digest = hashlib.sha256(str(ROOT).encode())
    for path in inputs:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _delete(path: Path) -> None:
    if not path.exists():
        return
    if not (path / "pyvenv.cfg").exists() and not (path / "install.log").exists():
        raise StepFailed(f"{path} exists and is no virtual environment: name another folder with --venv.")
    shutil.rmtree(path)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time set up an environment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / f"{path.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another setup of {path} ...", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
