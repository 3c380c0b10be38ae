"""Fused all-reduce over the oneshot all-reduce."""

from __future__ import annotations

from warploom.comm.backends.composed_fusion import ComposedFusion
from warploom.comm.backends.oneshot.all_reduce import OneShotAllReduce

__all__ = ["OneShotFusion"]


class OneShotFusion(ComposedFusion):
    """The reduction by "oneshot", the rest in torch."""

    name = "oneshot"
    all_reduce = OneShotAllReduce()
