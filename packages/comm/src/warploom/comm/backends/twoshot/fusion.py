"""Fused all-reduce over the twoshot all-reduce."""

from __future__ import annotations

from warploom.comm.backends.composed_fusion import ComposedFusion
from warploom.comm.backends.twoshot.all_reduce import TwoShotAllReduce

__all__ = ["TwoShotFusion"]


class TwoShotFusion(ComposedFusion):
    """The reduction by "twoshot", the rest in torch."""

    name = "twoshot"
    all_reduce = TwoShotAllReduce()
