"""Fused all-reduce, the reduction in one trip."""

from __future__ import annotations

from warploom.comm.backends.oneshot.all_reduce import OneShotAllReduce
from warploom.comm.backends.peer_fusion import PeerFusion

__all__ = ["OneShotFusion"]


class OneShotFusion(PeerFusion):
    """For few tokens."""

    name = "oneshot"
    kernel = "one_shot_fusion_kernel"
    all_reduce = OneShotAllReduce()
