"""Wheels of the five packages, and clean environments to install them in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("core", "attention", "gemm", "comm", "sampling")


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The five wheels by package name, built from copies so that nothing stale in the checkout gets in."""
    folder = tmp_path_factory.mktemp("wheels")
    sources = []
    for name in PACKAGES:
        source = folder / "sources" / name
        shutil.copytree(
            ROOT / "packages" / name, source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
        )
        sources.append(source)
    _pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, *sources)
    return {name: next(folder.glob(f"warploom_{name}-*.whl")) for name in PACKAGES}


class CleanEnvironment:
    """A virtual environment that has this one's third-party packages and nothing of Warploom.

    They are links to the outer site-packages, metadata included, so that pip checks the families' dependencies.
    """

    def __init__(self, path: Path) -> None:
        venv.create(path, with_pip=False, symlinks=True)
        self.path = path
        self.python = path / "bin" / "python"
        inside = sysconfig.get_path("purelib", "venv", {"base": str(path), "platbase": str(path)})
        self.site = Path(inside)
        for outside in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
            for entry in Path(outside).iterdir():
                link = self.site / entry.name
                if "warploom" not in entry.name and entry.suffix != ".pth" and not link.exists():
                    link.symlink_to(entry)

    def pip(self, *arguments: object) -> None:
        _pip("--python", self.python, *arguments)

    def run(self, program: str, *, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a Python program in the environment, away from the checkout."""
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        done = subprocess.run(
            [self.python, "-c", textwrap.dedent(program)],
            cwd=self.path,
            env={**kept, "PYTHONDONTWRITEBYTECODE": "1", **variables},
            capture_output=True,
            text=True,
        )
        if check and done.returncode != 0:
            pytest.fail(f"exited with {done.returncode}\n{done.stdout}{done.stderr}")
        return done


@pytest.fixture
def clean_environment(tmp_path: Path) -> CleanEnvironment:
    return CleanEnvironment(tmp_path / "environment")


def _pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
