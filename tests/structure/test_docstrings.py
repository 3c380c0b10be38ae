"""Every public name has a docstring with an example, and every example runs."""

import doctest
import importlib
import inspect
import pkgutil

import pytest
import torch

import warploom

FAMILIES = ("attention", "comm", "gemm", "sampling", "logits_processor")


def modules():
    names = []
    for top in ("core", *FAMILIES):
        package = importlib.import_module(f"warploom.{top}")
        names.append(package.__name__)
        names += [
            m.name for m in pkgutil.walk_packages(package.__path__, f"{package.__name__}.") if ".include" not in m.name
        ]
    return names


def public_callables():
    for family in FAMILIES:
        module = importlib.import_module(f"warploom.{family}")
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isfunction(value) or inspect.isclass(value):
                yield f"{family}.{name}", value


@pytest.mark.parametrize("name", modules())
def test_examples_run(name):
    module = importlib.import_module(name)
    torch.manual_seed(0)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, _ = doctest.testmod(module, optionflags=flags, extraglobs={"torch": torch, "warploom": warploom})
    assert failed == 0


@pytest.mark.parametrize(("name", "value"), [pytest.param(n, v, id=n) for n, v in public_callables()])
def test_public_names_are_documented(name, value):
    text = inspect.getdoc(value) or ""
    assert text, f"{name} has no docstring"
    if inspect.isfunction(value) and inspect.signature(value).parameters:
        assert "Parameters\n" in text, f"{name}: no Parameters section"
