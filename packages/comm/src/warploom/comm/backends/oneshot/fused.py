"""All-reduce and what follows it in one kernel, the reduction in one trip."""

from __future__ import annotations

from warploom.comm.backends.oneshot.all_reduce import OneShotAllReduce
from warploom.comm.backends.peer_fusion import PeerFusion

__all__ = ["FusedOneShot"]


class FusedOneShot(PeerFusion):
    """For few tokens."""

    name = "fused_oneshot"
    kernel = "one_shot_fusion_kernel"
    all_reduce = OneShotAllReduce()
