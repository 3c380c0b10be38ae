"""Fused all-reduce over the reference all-reduce."""

from __future__ import annotations

from warploom.comm.backends.composed_fusion import ComposedFusion
from warploom.comm.backends.reference.all_reduce import ReferenceAllReduce

__all__ = ["ReferenceFusion"]


class ReferenceFusion(ComposedFusion):
    """The reduction by "reference", the rest in torch."""

    name = "reference"
    all_reduce = ReferenceAllReduce()
