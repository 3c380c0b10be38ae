"""Communicators by number: operators registered with torch take an integer, since a schema knows no such object."""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING

from warploom.core.errors import CommunicationError

if TYPE_CHECKING:
    from warploom.comm.communicator import Communicator

__all__ = ["find", "register"]

_open: weakref.WeakValueDictionary[int, Communicator] = weakref.WeakValueDictionary()
_numbers = itertools.count(1)


def register(communicator: Communicator) -> int:
    """A number for the communicator, which stays alive only as long as its user holds it."""
    number = next(_numbers)
    _open[number] = communicator
    return number


def find(number: int, op: str) -> Communicator:
    """The open communicator with this number."""
    communicator = _open.get(number)
    if communicator is None:
        raise CommunicationError(f"{op}: the communicator no longer exists; keep it alive as long as operators use it")
    communicator.require_open(op)
    return communicator
