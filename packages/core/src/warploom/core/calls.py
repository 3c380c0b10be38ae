"""Calls that repeat: what was found out for one holds for all whose arguments lie alike.

An engine makes the same calls over and over, and checking arguments, choosing a backend and preparing a launch take longer
than many kernels. So each is done once for a layout: shapes, strides, dtypes, devices and plain values.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

__all__ = ["Kept", "layout_key", "once_per_layout"]

K = TypeVar("K")
V = TypeVar("V")
R = TypeVar("R")

_MOST_LAYOUTS = 4096  # of one operator; ragged shapes would otherwise make ever more
_VECTOR_BYTES = 16
_TENSORS = frozenset((torch.Tensor, torch.nn.Parameter))
_PLAIN = frozenset((str, int, float, bool, torch.dtype, type(None)))


class Kept(dict[K, V]):
    """A dictionary of what can be found out again, which starts anew when it is full.

    Parameters
    ----------
    most : int
        Entries that it may have.

    Examples
    --------
    >>> kept = Kept(2)
    >>> [kept.keep(number, str(number)) for number in range(3)], dict(kept)
    (['0', '1', '2'], {2: '2'})
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def keep(self, key: K, value: V) -> V:
        """Add an entry and return its value."""
        if len(self) >= self._most:
            self.clear()
        self[key] = value
        return value


def layout_key(*arguments: Any, aligned: bool = False) -> tuple[Any, ...] | None:
    """How tensors lie, and all else as it is, as a key.

    None for arguments that it can't speak for, and inside ``torch.compile``, whose sizes are symbols.

    Parameters
    ----------
    aligned : bool
        Tell tensors apart, too, that begin at different distances from a multiple of 16 bytes.

    Examples
    --------
    >>> x = torch.zeros(2, 3)
    >>> layout_key(x, "MN") == layout_key(torch.ones(2, 3), "MN"), layout_key(x) == layout_key(x.T)
    (True, False)
    >>> layout_key([x]) is None
    True
    """
    if torch.compiler.is_compiling():
        return None
    key: list[Any] = []
    for value in arguments:
        kind = type(value)
        if kind in _TENSORS and value.layout is torch.strided:
            key.append((value.shape, value.stride(), value.dtype, value.device))
            if aligned:
                key.append(value.data_ptr() % _VECTOR_BYTES)
        elif kind in _PLAIN or (kind is tuple and all(type(part) in _PLAIN for part in value)):
            key += (kind, value)  # 1 is equal to True and to 1.0
        else:
            return None
    return tuple(key)


def once_per_layout(check: Callable[..., R]) -> Callable[..., R]:
    """Decorate the checks of an operator: they are skipped for arguments that lie as others that have passed.

    What they return, which must not be None, is given again: it may depend on nothing but what `layout_key` tells, so it is
    made of sizes and names, never of tensors.

    Examples
    --------
    >>> @once_per_layout
    ... def rows(x):
    ...     print("checked")
    ...     return x.shape[0]
    >>> rows(torch.zeros(2, 3)) + rows(torch.ones(2, 3))
    checked
    4
    """
    known: Kept[Any, R] = Kept(_MOST_LAYOUTS)

    @functools.wraps(check)
    def checked(*arguments: Any) -> R:
        key = layout_key(*arguments)
        if key is None:
            return check(*arguments)
        found = known.get(key)
        return known.keep(key, check(*arguments)) if found is None else found

    return checked
