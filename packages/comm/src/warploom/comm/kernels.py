"""The kernel instances that are built ahead of time and compiled in the test suite."""

from __future__ import annotations

from warploom.comm.backends.oneshot.all_gather import OneShotAllGather
from warploom.comm.backends.oneshot.all_reduce import OneShotAllReduce
from warploom.comm.backends.oneshot.reduce_scatter import OneShotReduceScatter
from warploom.comm.backends.peer_kernel import DTYPES
from warploom.comm.backends.twoshot.all_reduce import TwoShotAllReduce

__all__ = ["SHIPPED"]

_SIZES = (2, 4, 8)

SHIPPED = [
    *(
        backend.spec(dtype, size)
        for backend in (OneShotAllReduce, TwoShotAllReduce, OneShotReduceScatter)
        for dtype in DTYPES
        for size in _SIZES
    ),
    *map(OneShotAllGather.spec, _SIZES),
]
