"""Integers that stand for Python objects in calls of torch operators, whose schemas take no objects.

A traced graph keeps the number, not the object: planning a wrapper again changes what the number leads to and does not
make `torch.compile` trace again.
"""

from __future__ import annotations

import itertools
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

from warploom.core.errors import PlanError

T = TypeVar("T")

__all__ = ["HandleTable"]


class HandleTable(Generic[T]):
    """Living objects by number. Numbers are never reused, so a stale one fails instead of finding another object.

    Examples
    --------
    >>> class Thing: pass
    >>> things, thing = HandleTable("thing"), Thing()
    >>> things[things.add(thing)] is thing
    True
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._numbers = itertools.count(1)
        self._objects: WeakValueDictionary[int, T] = WeakValueDictionary()

    def add(self, value: T) -> int:
        """Give the object a number; the table does not keep it alive."""
        number = next(self._numbers)
        self._objects[number] = value
        return number

    def __getitem__(self, number: int) -> T:
        try:
            return self._objects[number]
        except KeyError:
            raise PlanError(
                f"the {self._what} of this traced call is gone; keep it alive as long as the compiled function"
            ) from None
