"""The kernel instances that are built ahead of time and compiled in the test suite."""

from __future__ import annotations

from warploom.comm.backends.oneshot.all_reduce import OneShotAllReduce
from warploom.comm.backends.peer_all_reduce import DTYPES, spec
from warploom.comm.backends.twoshot.all_reduce import TwoShotAllReduce

__all__ = ["SHIPPED"]

SHIPPED = [
    spec(backend.kernel, dtype, size)
    for backend in (OneShotAllReduce, TwoShotAllReduce)
    for dtype in DTYPES
    for size in (2, 4, 8)
]
