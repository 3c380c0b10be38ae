"""What is in the wheels."""

from __future__ import annotations

import email
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = ("attention", "gemm", "comm", "sampling")
DATA = (".cuh", ".yaml", ".typed")
LARGEST = 1_000_000  # bytes


def files(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        name = next(entry for entry in archive.namelist() if entry.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def test_core_alone_owns_the_namespace(wheels):
    owners = [name for name, wheel in wheels.items() if "warploom/__init__.py" in files(wheel)]
    assert owners == ["core"]


def test_no_file_is_in_two_wheels(wheels):
    count = Counter(entry for wheel in wheels.values() for entry in files(wheel))
    assert [entry for entry, times in count.items() if times > 1] == []


def test_wheels_hold_their_family_alone(wheels):
    own = {"core": ("core",), "sampling": ("sampling", "logits_processor")}
    for name, wheel in wheels.items():
        folders = own.get(name, (name,))
        for entry in files(wheel):
            top, inside = entry.split("/")[:2]
            assert top.endswith(".dist-info") or inside in folders or (name == "core" and entry.count("/") == 1), entry


def test_wheels_are_small(wheels):
    sizes = {name: wheel.stat().st_size for name, wheel in wheels.items()}
    print(sizes)
    assert max(sizes.values()) <= LARGEST


@pytest.mark.parametrize("name", ["core", *FAMILIES])
def test_every_source_and_data_file_is_shipped(wheels, name):
    source = ROOT / "packages" / name / "src"
    expected = {
        str(path.relative_to(source))
        for path in source.rglob("*")
        if path.suffix == ".py" or path.name == "py.typed" or path.suffix in DATA
    }
    missing = expected - set(files(wheels[name]))
    assert not missing, "not shipped: extend package-data in its pyproject.toml"
    assert any(entry.endswith("licenses/LICENSE") for entry in files(wheels[name]))


@pytest.mark.parametrize("name", ["core", *FAMILIES])
def test_nothing_else_lies_in_the_sources(name):
    """A data file of another type would be left out of the wheel."""
    source = ROOT / "packages" / name / "src" / "warploom"
    kinds = {path.suffix for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert kinds <= {".py", "", *DATA}


def test_versions_are_equal_and_families_pin_core(wheels):
    import warploom

    root = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    versions = {name: metadata(wheel)["Version"] for name, wheel in wheels.items()}
    assert {*versions.values(), root[1]} == {warploom.__version__}
    for name in FAMILIES:
        needed = [Requirement(line) for line in metadata(wheels[name]).get_all("Requires-Dist")]
        always = [str(requirement) for requirement in needed if requirement.marker is None]
        assert always == [f"warploom-core=={warploom.__version__}"], name


@pytest.mark.parametrize("in_checkout", [True, False])
def test_root_brings_all_five(tmp_path, in_checkout):
    """`pip install .` takes the packages of the checkout; a source distribution names the published ones."""
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    if in_checkout:
        shutil.copytree(ROOT / "packages", tmp_path / "packages", ignore=shutil.ignore_patterns("src"))
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    report = subprocess.run(
        [*command, "--no-deps", "--no-index", "--no-build-isolation", tmp_path],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = json.loads(report.stdout)["install"][0]["metadata"]["requires_dist"]
    required = {requirement.name: requirement.url for requirement in map(Requirement, lines)}
    assert required == {
        f"warploom-{name}": (tmp_path / "packages" / name).as_uri() if in_checkout else None
        for name in ("core", *FAMILIES)
    }
