"""The interface of a transport."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NoReturn

import torch

from warploom.core.errors import CommunicationError

__all__ = ["Transport"]


class Transport(ABC):
    """Moves bytes between the ranks of one communicator and never waits longer than `timeout`.

    Attributes
    ----------
    name : str
        ``"alone"``, ``"mpi"``, ``"gloo"`` or ``"nccl"``.
    rank, size : int
        This rank and the number of ranks.
    device : torch.device
        Where the tensors that it moves must lie.
    timeout : float
        Seconds that one step waits for a peer.
    activity : str
        What the ranks are doing, for messages: operation and call number.
    failure : str
        Why the transport is unusable; empty while it works. A step that timed out leaves messages under way which a
        later call would mistake for its own, so nothing is sent after a failure.
    """

    name: ClassVar[str]
    rank: int
    size: int
    device: torch.device = torch.device("cpu")
    timeout: float
    activity: str = "setting up"
    failure: str = ""

    @abstractmethod
    def exchange(self, payload: bytes) -> list[bytes]:
        """Give every rank the byte strings of all ranks, in rank order. Lengths may differ."""

    @abstractmethod
    def all_gather(self, out: torch.Tensor, x: torch.Tensor) -> None:
        """Put the equally long byte tensors ``x [n]`` of all ranks into ``out [size * n]``, in rank order."""

    @abstractmethod
    def all_to_all(
        self, out: torch.Tensor, x: torch.Tensor, out_counts: Sequence[int], in_counts: Sequence[int]
    ) -> None:
        """Send ``in_counts[r]`` bytes of ``x`` to rank r and put ``out_counts[r]`` bytes from rank r into ``out``."""

    @abstractmethod
    def close(self) -> None:
        """Give back what the transport took. No message is exchanged."""

    def exchange_objects(self, value: Any) -> list[Any]:
        """Give every rank the plain data (numbers, text, lists) of all ranks, in rank order; tuples arrive as lists."""
        return [json.loads(data) for data in self.exchange(json.dumps(value).encode())]

    def barrier(self) -> None:
        """Return once every rank has called it."""
        self.exchange(b"")

    def fail(self, reason: str) -> NoReturn:
        """Mark the transport unusable and raise."""
        self.failure = f"rank {self.rank}: {self.activity}: {reason}"
        raise CommunicationError(self.failure)
