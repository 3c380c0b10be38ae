"""Loading the benchmark definitions of a checkout: ``tools/bench/<suite>.py``."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

__all__ = ["load_suite", "suite_names"]


def suite_names(folder: Path) -> list[str]:
    """Names of the suites in a folder: its Python files, without those that begin with an underscore."""
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def load_suite(folder: Path, name: str) -> ModuleType:
    """Import one suite under a name of its own: `comm` or `jit` must not shadow, or be, another module.

    A suite defines ``BENCHMARKS``, a list of `Benchmark`, or ``tables(options, device)``, which returns tables of
    something that has no peers.
    """
    spec = importlib.util.spec_from_file_location(f"warploom_bench_{name}", folder / f"{name}.py")
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"no suite {name} in {folder}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
