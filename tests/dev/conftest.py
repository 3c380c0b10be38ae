"""Makes the modules of tools/dev importable, as they are when `python3 tools/dev` runs."""

import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "tools" / "dev"


@pytest.fixture(autouse=True)
def _tools_dev(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    names = [path.stem for path in FOLDER.glob("*.py")]
    others = {name: sys.modules.pop(name) for name in names if name in sys.modules}  # tools/demo has a `cli` too
    yield
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(others)


@pytest.fixture
def folder():
    return FOLDER
