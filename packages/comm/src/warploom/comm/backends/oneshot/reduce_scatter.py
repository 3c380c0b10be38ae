"""One-shot reduce-scatter: our kernel, every part to its rank."""

from __future__ import annotations

from warploom.comm.backends.peer_kernel import PACKET_BYTES, PeerReduction
from warploom.comm.problems.reduce_scatter import ReduceScatterProblem

__all__ = ["OneShotReduceScatter"]


class OneShotReduceScatter(PeerReduction):
    """One trip."""

    name = "oneshot"
    header = "reduce_scatter"
    kernel = "reduce_scatter_kernel"
    has_stages = True

    def largest_message(self, problem: ReduceScatterProblem) -> int:
        # The half holds a part from every rank, each a whole number of packets.
        return problem.half_bytes // (problem.size * PACKET_BYTES) * PACKET_BYTES * problem.size

    def packets_of_rank(self, problem: ReduceScatterProblem) -> int:
        return self.packets(problem.nbytes // problem.size)
