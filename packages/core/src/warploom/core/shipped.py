"""The kernels that the installed families ship: what is built ahead of time, compiled in the test suite and timed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable

from warploom.core import families
from warploom.core.errors import ArgumentError
from warploom.core.jit.spec import KernelSpec

__all__ = ["installed_families", "shipped_kernels"]


def installed_families() -> list[str]:
    """Names of the installed families, the project's own and those of third parties; imports nothing."""
    return sorted(families.installed())


def shipped_kernels(wanted: Iterable[str] | None = None) -> dict[str, list[KernelSpec]]:
    """Return ``SHIPPED`` of the module ``kernels`` of each family.

    Parameters
    ----------
    wanted : iterable of str, optional
        Families; by default all that are installed. A family without kernels has an empty list.

    Raises
    ------
    ArgumentError
        A family is not installed.
    """
    points = families.installed()
    found = {}
    for name in sorted(points) if wanted is None else wanted:
        if name not in points:
            known = ", ".join(sorted(points)) or "none is"
            raise ArgumentError.of("shipped_kernels", "family", f"an installed family ({known})", repr(name))
        module = f"{points[name].module}.kernels"
        has_kernels = importlib.util.find_spec(module) is not None
        found[name] = list(importlib.import_module(module).SHIPPED) if has_kernels else []
    return found
