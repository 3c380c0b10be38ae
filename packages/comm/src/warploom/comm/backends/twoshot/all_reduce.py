"""Two-shot all-reduce: our kernel, reduce-scatter and all-gather in one launch."""

from __future__ import annotations

from warploom.comm.backends.peer_kernel import PACKET_BYTES, PeerReduction
from warploom.comm.problems.all_reduce import AllReduceProblem

__all__ = ["TwoShotAllReduce"]


class TwoShotAllReduce(PeerReduction):
    """Two trips, less traffic; for middle-sized messages."""

    name = "twoshot"
    header = "all_reduce"
    kernel = "two_shot_all_reduce_kernel"
    has_stages = True

    def largest_message(self, problem: AllReduceProblem) -> int:
        # The half holds `size` chunks to reduce and `size` reduced ones, each a whole number of packets.
        chunk_packets = problem.half_bytes // (2 * problem.size * PACKET_BYTES)
        return chunk_packets * problem.size * PACKET_BYTES

    def packets_of_rank(self, problem: AllReduceProblem) -> int:
        return -(-self.packets(problem.nbytes) // problem.size)
