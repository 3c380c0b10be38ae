"""All-reduce and what follows it in one kernel, the reduction in two trips."""

from __future__ import annotations

from warploom.comm.backends.peer_fusion import PeerFusion
from warploom.comm.backends.peer_kernel import PACKET_BYTES
from warploom.comm.backends.twoshot.all_reduce import TwoShotAllReduce
from warploom.comm.peer_workspace import MAX_BLOCKS
from warploom.comm.problems.fusion import FusionProblem

__all__ = ["FusedTwoShot"]

# Packets of a chunk for each thread of a block, from which on some blocks have rows to finish while others sum.
_LONG = 96


class FusedTwoShot(PeerFusion):
    """Less traffic, for more tokens."""

    name = "fused_twoshot"
    kernel = "two_shot_fusion_kernel"
    all_reduce = TwoShotAllReduce()

    @staticmethod
    def blocks(problem: FusionProblem, threads: int) -> tuple[int, int]:
        packets = -(-problem.nbytes // (PACKET_BYTES * problem.size))  # of a chunk
        if packets < _LONG * threads:
            return min(MAX_BLOCKS, problem.tokens), 0
        # Fitted on 2 and 4 GPUs: with more ranks chunks are shorter, but every packet goes to more peers.
        reducers = 8 + 48 // problem.size
        return MAX_BLOCKS - reducers, reducers
