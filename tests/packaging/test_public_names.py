"""Names under ``warploom``: the table in `warploom.core.families`, and how a name is found or refused."""

from __future__ import annotations

import importlib
import inspect
import sys
import textwrap
from importlib.metadata import EntryPoint
from types import ModuleType

import pytest

import warploom
from warploom.core import families


@pytest.mark.parametrize("key", families.FAMILIES)
def test_table_repeats_the_family(key):
    family = families.FAMILIES[key]
    exported = sorted(importlib.import_module(f"warploom.{family.modules[0]}").__all__)
    table = "\n".join(textwrap.wrap(" ".join(exported), 118))
    assert list(family.names) == exported, (
        f"in packages/core/src/warploom/core/families.py, _{key.upper()}_NAMES should be:\n{table}"
    )


@pytest.mark.parametrize("key", families.FAMILIES)
def test_every_public_name_resolves(key):
    family = families.FAMILIES[key]
    module = importlib.import_module(f"warploom.{family.modules[0]}")
    assert family.names
    for name in family.names:
        value = families.resolve(name)
        assert value is getattr(module, name)
        assert not inspect.ismodule(value), f"{name} is hidden by the module of the same name"


def test_no_name_belongs_to_two_families():
    names = [name for family in families.FAMILIES.values() for name in family.names]
    assert len(names) == len(set(names))
    modules = {module for family in families.FAMILIES.values() for module in family.modules}
    assert not modules & set(names)


def test_distributions_announce_the_families():
    ours = {key: point.module for key, point in families.installed().items() if key in families.FAMILIES}
    assert ours == {key: f"warploom.{key}" for key in families.FAMILIES}


def test_unknown_name_offers_near_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'sofmax'; did you mean .*softmax"):
        warploom.sofmax  # noqa: B018


def test_core_names():
    assert warploom.UnsupportedError is importlib.import_module("warploom.core.errors").UnsupportedError
    assert {"UnsupportedError", "settings", "softmax", "sampling", "core"} <= set(dir(warploom))


@pytest.fixture
def third_party(monkeypatch):
    """A family of somebody else, announced by its entry point alone."""
    module = ModuleType("elsewhere_ops")
    module.__all__ = ["fast_thing"]
    module.fast_thing = object()
    monkeypatch.setitem(sys.modules, "elsewhere_ops", module)
    point = EntryPoint(name="elsewhere", value="elsewhere_ops", group=families.GROUP)
    monkeypatch.setattr(families, "installed", lambda: {"elsewhere": point})
    return module


def test_third_party_family(third_party):
    assert families.resolve("elsewhere") is third_party
    assert families.resolve("fast_thing") is third_party.fast_thing
    assert "elsewhere" in dir(warploom)


def test_broken_third_party_family_is_named(third_party, monkeypatch):
    monkeypatch.setitem(sys.modules, "elsewhere_ops", None)
    with pytest.raises(ImportError, match="'elsewhere' \\(elsewhere_ops\\) does not import"):
        families.resolve("fast_thing")
    with pytest.raises(AttributeError):
        warploom.__wrapped__  # noqa: B018


def test_missing_dependency_of_a_family_is_not_a_missing_family(monkeypatch):
    monkeypatch.setattr(families.importlib, "import_module", _without_numpy)
    with pytest.raises(ModuleNotFoundError, match="No module named 'numpy'"):
        families.resolve(families.FAMILIES["sampling"].names[0])


def _without_numpy(name):
    raise ModuleNotFoundError("No module named 'numpy'", name="numpy")
