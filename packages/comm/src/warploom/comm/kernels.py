"""The kernel instances that are built ahead of time and compiled in the test suite."""

from __future__ import annotations

import torch

from warploom.comm.backends.direct.moe_all_to_all import DirectCombine, DirectDispatch
from warploom.comm.backends.oneshot.all_gather import OneShotAllGather
from warploom.comm.backends.oneshot.all_reduce import OneShotAllReduce
from warploom.comm.backends.oneshot.fused import FusedOneShot
from warploom.comm.backends.oneshot.moe_all_to_all import OneShotCombine, OneShotDispatch
from warploom.comm.backends.oneshot.reduce_scatter import OneShotReduceScatter
from warploom.comm.backends.peer_exchange import exchange_spec
from warploom.comm.backends.peer_kernel import DTYPES
from warploom.comm.backends.peer_moe import routing_spec
from warploom.comm.backends.twoshot.all_reduce import TwoShotAllReduce
from warploom.comm.backends.twoshot.fused import FusedTwoShot

__all__ = ["SHIPPED"]

_SIZES = (2, 4, 8)

SHIPPED = [
    *(
        backend.spec(dtype, size)
        for backend in (OneShotAllReduce, TwoShotAllReduce, OneShotReduceScatter)
        for dtype in DTYPES
        for size in _SIZES
    ),
    *(
        backend.spec(torch.bfloat16, size, True)
        for backend in (TwoShotAllReduce, OneShotReduceScatter)
        for size in _SIZES
    ),
    *map(OneShotAllGather.spec, _SIZES),
    *map(exchange_spec, _SIZES),
    *map(routing_spec, _SIZES),
    *map(OneShotDispatch.spec, _SIZES),
    *map(DirectDispatch.spec, _SIZES),
    *(combine.spec(torch.bfloat16, size) for combine in (OneShotCombine, DirectCombine) for size in _SIZES),
    *(
        backend.spec(torch.bfloat16, 8, 8192, True, scales, group)
        for backend in (FusedOneShot, FusedTwoShot)
        for scales, group in (("", 0), ("tensor", 0), ("token", 0), ("group", 128))
    ),
    FusedOneShot.spec(torch.float32, 2, 1000, False, "", 0),
]
