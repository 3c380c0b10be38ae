"""Import times beyond `import torch`, and the sizes of the wheels."""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch

from warploom.core.bench.report import Table
from warploom.core.shipped import installed_families

PACKAGES = Path(__file__).resolve().parents[2] / "packages"
IMPORT_BUDGET_S, WHEEL_BUDGET_MB = 0.3, 1.0

_TIME_IMPORT = """
import time, torch
start = time.perf_counter()
import {module}
print(time.perf_counter() - start, torch.cuda.is_initialized())
"""


def tables(options: argparse.Namespace, device: torch.device) -> list[Table]:
    return [_import_table(3 if options.quick else 7), _wheel_table()]


def _import_table(runs: int) -> Table:
    """Each import in its own process; the median, since the first one fills the file cache and writes bytecode."""
    rows = []
    for module in ["warploom", "warploom.core", *(f"warploom.{name}" for name in installed_families())]:
        outputs = [_run([sys.executable, "-c", _TIME_IMPORT.format(module=module)]).split() for _ in range(runs)]
        seconds = statistics.median(float(text) for text, _ in outputs)
        context = "yes" if any(initialised == "True" for _, initialised in outputs) else "no"
        rows.append([module, f"{seconds * 1e3:.0f}", context, "yes" if seconds <= IMPORT_BUDGET_S else "no"])
    columns = ("import", "ms beyond torch", "CUDA context", f"within {IMPORT_BUDGET_S * 1e3:.0f} ms")
    return Table("import times", columns, rows)


def _wheel_table() -> Table:
    rows = []
    with tempfile.TemporaryDirectory(prefix="warploom-wheels-") as folder:
        for package in sorted(path.parent for path in PACKAGES.glob("*/pyproject.toml")):
            source = Path(folder) / package.name  # setuptools leaves build folders beside the sources
            shutil.copytree(package, source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
            _run(
                [
                    sys.executable,
                    "-m",
                    "pip",
                    "wheel",
                    "--no-deps",
                    "--no-build-isolation",
                    "-q",
                    "-w",
                    folder,
                    str(source),
                ]
            )
            (wheel,) = Path(folder).glob(f"*{package.name}-*.whl")
            with zipfile.ZipFile(wheel) as archive:
                unpacked = sum(item.file_size for item in archive.infolist())
            megabytes = wheel.stat().st_size / 1e6
            rows.append([wheel.name.split("-")[0], f"{megabytes * 1e3:.0f}", f"{unpacked / 1e3:.0f}",
                         "yes" if megabytes <= WHEEL_BUDGET_MB else "no"])  # fmt: skip
    return Table("wheels", ("wheel", "kB", "kB unpacked", f"within {WHEEL_BUDGET_MB:g} MB"), rows)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"tools/bench startup: {' '.join(command[:4])} failed:\n{done.stderr}")
    return done.stdout
