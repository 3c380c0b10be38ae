"""The README's programs run, its table of operators is true, and the pages' links lead somewhere."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from warploom.core.backends import OPERATORS
from warploom.core.families import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
MODULES = [module for family in FAMILIES.values() for module in family.modules]


PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_program_runs_on_cpu(program):
    assert 'device = "cuda"\n' in program
    on_cpu = program.replace('device = "cuda"\n', 'device = "cpu"\n')
    done = subprocess.run([sys.executable, "-c", on_cpu], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def stem_of(value):
    return inspect.getmodule(value).__name__.split(".")[-1]


def operator_rows():
    """One row a stem: its public names, and the backends of the operators that live there."""
    backends, names = {}, {}
    for module in MODULES:
        package = importlib.import_module(f"warploom.{module}")
        for name in package.__all__:
            value = getattr(package, name)
            if inspect.isfunction(value) or inspect.isclass(value):
                names.setdefault((module, stem_of(value)), []).append(name)
    for operator in OPERATORS.values():
        for backend in operator.backends.values():
            seen = backends.setdefault((operator.family, type(backend).__module__.split(".")[-1]), [])
            if backend.name not in seen:
                seen.append(backend.name)
    for (module, stem), public in names.items():
        shown = ", ".join(f"`{name}`" for name in public)
        yield f"| {module} | `{stem}` | {shown} | {', '.join(backends.get((module, stem), [])) or '–'} |"


def test_operator_table():
    expected = "\n".join(["| family | stem | operators | backends |", "|---|---|---|---|", *operator_rows()])
    table = re.search(r"<!-- operators: .*? -->\n(.*?)\n<!-- /operators -->", README, re.DOTALL)[1]
    assert table == expected, f"the table should be:\n{expected}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target
