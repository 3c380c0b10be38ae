"""One-shot all-reduce: our kernel, every message to every peer."""

from __future__ import annotations

from warploom.comm.backends.peer_kernel import PACKET_BYTES, PeerReduction
from warploom.comm.problems.all_reduce import AllReduceProblem

__all__ = ["OneShotAllReduce"]


class OneShotAllReduce(PeerReduction):
    """One trip; for small messages."""

    name = "oneshot"
    header = "all_reduce"
    kernel = "one_shot_all_reduce_kernel"

    def largest_message(self, problem: AllReduceProblem) -> int:
        return problem.half_bytes // (problem.size * PACKET_BYTES) * PACKET_BYTES

    def packets_of_rank(self, problem: AllReduceProblem) -> int:
        return self.packets(problem.nbytes)
