"""Registration of operators with ``torch.library``.

Operators are registered under ``torch.ops.warploom`` with the low-level `torch.library.Library`, which costs about
1.4 us a call where ``torch.library.custom_op`` costs 10. An operator mutates the outputs that its schema marks
(``Tensor(a!) out``) and returns nothing, so its fake implementation is empty and ``out=`` needs no second operator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["register_op"]

_LIBRARY = torch.library.Library("warploom", "FRAGMENT")


def _no_output(*args: Any, **kwargs: Any) -> None:
    """Fake implementation of operators that only mutate their arguments."""


def register_op(
    schema: str, *, fake: Callable[..., Any] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as ``torch.ops.warploom.<name>`` for tensors of every device.

    Parameters
    ----------
    schema : str
        ``"name(Tensor(a!) out, Tensor x, str backend) -> ()"``.
    fake : callable, optional
        Shape function for tracing; needed only when the schema returns something.

    Returns
    -------
    callable
        The decorator, which returns the operator's overload: calling it goes through torch's dispatcher, so that
        ``torch.compile(fullgraph=True)`` and ``torch.export`` see one node.

    Examples
    --------
    >>> import torch
    >>> @register_op("doc_double(Tensor(a!) out, Tensor x) -> ()")
    ... def double(out, x):
    ...     torch.mul(x, 2, out=out)
    >>> out = torch.empty(2)
    >>> double(out, torch.ones(2)); out.tolist()
    [2.0, 2.0]
    """
    name = schema[: schema.index("(")].strip()

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        _LIBRARY.define(schema)
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        torch.library.register_fake(f"warploom::{name}", fake or _no_output, lib=_LIBRARY)
        return getattr(torch.ops.warploom, name).default

    return decorate
