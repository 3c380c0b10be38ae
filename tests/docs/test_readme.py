"""The README's programs run, its table of operators is true, and the pages' links lead somewhere."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from warploom.core.backends import Operator
from warploom.core.families import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_program_runs_on_cpu(program):
    on_cpu = program.replace('device = "cuda"\n', 'device = "cpu"\n')
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", on_cpu], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr


def operators_behind(module, family):
    """The operators of a module, else of the family's modules whose functions and classes it uses, and so on."""
    level, seen = [module], set()
    while level:
        operators = [value for used in level for value in vars(used).values() if isinstance(value, Operator)]
        if operators:
            return operators
        seen.update(level)
        values = [value for used in level for value in vars(used).values()]
        users = {inspect.getmodule(value) for value in values if inspect.isfunction(value) or inspect.isclass(value)}
        level = sorted(
            (used for used in users - seen if used and used.__name__.startswith(f"warploom.{family}.")),
            key=lambda used: used.__name__,
        )
    return []


def backends_of(module, family):
    names = dict.fromkeys(name for operator in operators_behind(module, family) for name in operator.backends)
    return ", ".join(sorted(names, key="reference".__eq__)) or "–"


def operator_rows():
    """One row a stem: its public names, and the backends of the operators behind them."""
    for family in FAMILIES:
        package = importlib.import_module(f"warploom.{family}")
        stems = {}
        for name in package.__all__:
            value = getattr(package, name)
            if inspect.isfunction(value) or inspect.isclass(value):
                stems.setdefault(inspect.getmodule(value), []).append(f"`{name}`")
        for module, names in sorted(stems.items(), key=lambda item: item[0].__name__):
            stem = module.__name__.removeprefix(f"warploom.{family}.")
            yield f"| {family} | `{stem}` | {', '.join(names)} | {backends_of(module, family)} |"


def test_operator_table():
    expected = "\n".join(["| family | stem | operators | backends |", "|---|---|---|---|", *operator_rows()])
    table = re.search(r"<!-- operators: .*? -->\n(.*?)\n<!-- /operators -->", README, re.DOTALL)[1]
    assert table == expected, f"the table should be:\n{expected}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target
