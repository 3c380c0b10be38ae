"""Fused all-reduce over the mpi all-reduce."""

from __future__ import annotations

from warploom.comm.backends.composed_fusion import ComposedFusion
from warploom.comm.backends.mpi.all_reduce import MpiAllReduce

__all__ = ["MpiFusion"]


class MpiFusion(ComposedFusion):
    """The reduction by "mpi", the rest in torch."""

    name = "mpi"
    all_reduce = MpiAllReduce()
