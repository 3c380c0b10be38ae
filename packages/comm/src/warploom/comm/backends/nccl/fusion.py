"""Fused all-reduce over the nccl all-reduce."""

from __future__ import annotations

from warploom.comm.backends.composed_fusion import ComposedFusion
from warploom.comm.backends.nccl.all_reduce import NcclAllReduce

__all__ = ["NcclFusion"]


class NcclFusion(ComposedFusion):
    """The reduction by "nccl", the rest in torch."""

    name = "nccl"
    all_reduce = NcclAllReduce()
