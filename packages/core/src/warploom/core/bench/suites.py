"""Loading the benchmark definitions of a checkout: ``tools/bench/<suite>.py``, or a package of that name."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

__all__ = ["load_suite", "suite_names"]


def suite_names(folder: Path) -> list[str]:
    """Names of the suites in a folder: its Python files and packages, without those that begin with an underscore."""
    found = [*folder.glob("*.py"), *(path.parent for path in folder.glob("*/__init__.py"))]
    return sorted(path.stem for path in found if not path.stem.startswith("_"))


def load_suite(folder: Path, name: str) -> ModuleType:
    """Import one suite under a name of its own: `comm` or `jit` must not shadow, or be, another module.

    A suite defines ``BENCHMARKS``, a list of `Benchmark`, or ``tables(options, device)``, which returns tables of
    something that has no peers. A package's modules import one another relatively.
    """
    package = folder / name / "__init__.py"
    path = package if package.exists() else folder / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"warploom_bench_{name}", path)
    if not path.exists() or spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"no suite {name} in {folder}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # relative imports look their package up there
    spec.loader.exec_module(module)
    return module
