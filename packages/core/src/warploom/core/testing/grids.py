"""Case grids, for ``pytest.mark.parametrize`` and for benchmarks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import torch


def grid(keep: Callable[[SimpleNamespace], bool] | None = None, /, **axes: Iterable[Any]) -> list[SimpleNamespace]:
    """Return the cartesian product of `axes`, without the cases for which `keep` returns false.

    Examples
    --------
    >>> grid(lambda c: c.m <= c.n, m=[1, 2], n=[1, 2])
    [namespace(m=1, n=1), namespace(m=1, n=2), namespace(m=2, n=2)]
    """
    points = itertools.product(*axes.values())
    all_cases = [SimpleNamespace(**dict(zip(axes, point, strict=True))) for point in points]
    return [case for case in all_cases if keep is None or keep(case)]


def label(case: SimpleNamespace) -> str:
    """Return a case as one readable word.

    Examples
    --------
    >>> label(SimpleNamespace(batch=3, dtype=torch.bfloat16, causal=False))
    'batch3-bf16-no_causal'
    """
    return "-".join(_part(name, value) for name, value in vars(case).items())


def cases(keep: Callable[[SimpleNamespace], bool] | None = None, /, **axes: Iterable[Any]) -> tuple[str, list[Any]]:
    """Return the arguments of ``pytest.mark.parametrize`` for the cartesian product of `axes`.

    Parameters
    ----------
    keep : callable, optional
        Positional. Called with each case; cases for which it returns false are left out.
    **axes
        Name and values of each axis.

    Returns
    -------
    tuple
        ``("case", [pytest.param(SimpleNamespace(…), id=…), …])``; the test takes one argument named ``case``.

    Examples
    --------
    >>> name, params = cases(batch=[1, 3], dtype=[torch.float16])
    >>> name, [param.id for param in params]
    ('case', ['batch1-fp16', 'batch3-fp16'])
    >>> params[1].values[0].batch
    3
    """
    import pytest  # here, so that benchmarks can import the package on machines without pytest

    return "case", [pytest.param(case, id=label(case)) for case in grid(keep, **axes)]


_DTYPE_LABELS = {
    "float64": "fp64",
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "float8_e4m3fn": "e4m3",
    "float8_e5m2": "e5m2",
}


def _part(name: str, value: Any) -> str:
    """One part of a label: ``batch3``, ``bf16``, ``causal`` / ``no_causal``, ``layout_NHD``."""
    if isinstance(value, torch.dtype):
        plain = str(value).removeprefix("torch.")
        return _DTYPE_LABELS.get(plain, plain)
    if isinstance(value, bool):
        return name if value else f"no_{name}"
    if isinstance(value, (int, float)):
        return f"{name}{value:g}" if isinstance(value, float) else f"{name}{value}"
    if isinstance(value, (tuple, list, torch.Size)):
        return f"{name}_" + "x".join(str(part) for part in value)
    if callable(value):
        return getattr(value, "__name__", name)
    return f"{name}_{value}"
