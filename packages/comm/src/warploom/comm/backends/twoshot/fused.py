"""All-reduce and what follows it in one kernel, the reduction in two trips."""

from __future__ import annotations

from warploom.comm.backends.peer_fusion import PeerFusion
from warploom.comm.backends.peer_kernel import PACKET_BYTES
from warploom.comm.backends.twoshot.all_reduce import TwoShotAllReduce
from warploom.comm.peer_workspace import MAX_BLOCKS
from warploom.comm.problems.fusion import FusionProblem

__all__ = ["FusedTwoShot"]

_LONG = 3  # rounds of half the blocks over a chunk, from which on the other half has rows to finish meanwhile


class FusedTwoShot(PeerFusion):
    """Less traffic, for more tokens."""

    name = "fused_twoshot"
    kernel = "two_shot_fusion_kernel"
    all_reduce = TwoShotAllReduce()

    @staticmethod
    def blocks(problem: FusionProblem, threads: int) -> tuple[int, int]:
        packets = -(-problem.nbytes // (PACKET_BYTES * problem.size))  # of a chunk
        half = MAX_BLOCKS // 2
        if packets < _LONG * half * threads:
            return min(MAX_BLOCKS, problem.tokens), 0
        return half, half
