"""The rules that keep the repository readable: sizes of files and functions, who imports whom, one stem throughout."""

import ast
import importlib
import re
from pathlib import Path

import pytest

from warploom.core.problem import Problem

ROOT = Path(__file__).parents[2]
FAMILIES = ("attention", "comm", "gemm", "sampling")
PYTHON = sorted(
    path for top in ("packages", "tools", "tests") for path in (ROOT / top).rglob("*.py") if "build" not in path.parts
)
KERNELS = sorted((ROOT / "packages").rglob("*.cuh"))
LONGEST_FILE = 600
LONGEST_FUNCTION = 60


def relative(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PYTHON + KERNELS, ids=relative)
def test_no_file_is_too_long(path):
    assert len(path.read_text().splitlines()) <= LONGEST_FILE


def body_lines(function):
    """Lines of a function's code, its docstring left out."""
    first = function.body[0]
    start = function.lineno
    documented = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    docstring = first.end_lineno - first.lineno + 1 if documented else 0
    return function.end_lineno - start + 1 - docstring


@pytest.mark.parametrize("path", [p for p in PYTHON if "tests" not in p.parts], ids=relative)
def test_no_function_is_too_long(path):
    long = {
        node.name: body_lines(node)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and body_lines(node) > LONGEST_FUNCTION
    }
    assert not long


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("family", ["core", *FAMILIES])
def test_families_import_core_alone(family):
    own = {"core": ("core",), "sampling": ("core", "sampling", "logits_processor")}.get(family, ("core", family))
    for path in (ROOT / "packages" / family).rglob("*.py"):
        if "build" in path.parts:
            continue
        for module in imported_modules(path):
            if module.startswith("warploom."):
                assert module.split(".")[1] in own, f"{relative(path)} imports {module}"


@pytest.mark.parametrize("family", FAMILIES)
def test_kernel_headers_include_core_and_their_own_family(family):
    for path in (ROOT / "packages" / family).rglob("*.cuh"):
        for name in re.findall(r'#include "([^"]+)"', path.read_text()):
            assert name.startswith("warploom/"), f"{relative(path)} includes {name}"
            parts = name.split("/")
            assert len(parts) == 2 or parts[1] == family, f"{relative(path)} includes {name}"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_backend_file_shares_its_stem_with_a_reference(family):
    """A kernel or library backend is found under the name of the operator it serves."""
    backends = ROOT / "packages" / family / "src" / "warploom" / family / "backends"
    references = {path.stem for path in (backends / "reference").glob("*.py")}
    for path in backends.glob("cuda/*.py"):
        defines_backend = any(
            isinstance(node, ast.ClassDef)
            and any("Backend" in ast.unparse(base) for base in node.bases)
            and "@abstractmethod" not in ast.unparse(node)
            for node in ast.walk(ast.parse(path.read_text()))
        )
        assert not defines_backend or path.stem in references, relative(path)


def test_nothing_executes_or_unpickles_data():
    """Cached and user data are never evaluated."""
    for path in PYTHON:
        if "tests" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), f"{relative(path)} calls {node.func.id}"
        assert "pickle" not in set(imported_modules(path)), relative(path)


def kinds_of(problem):
    return {problem}.union(*(kinds_of(kind) for kind in problem.__subclasses__()))


@pytest.mark.parametrize("family", FAMILIES)
def test_fields_that_no_table_is_to_see_exist(family):
    importlib.import_module(f"warploom.{family}")
    kinds = [kind for kind in kinds_of(Problem) if kind.__module__.startswith(f"warploom.{family}.")]
    assert kinds
    for kind in kinds:
        assert kind.untuned <= set(kind.__dataclass_fields__), kind
