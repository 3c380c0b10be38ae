"""A process group of torch.distributed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from warploom.comm.torch_collectives import TorchCollectives
from warploom.comm.transports.base import Transport
from warploom.core.errors import ArgumentError

__all__ = ["TorchTransport"]


class TorchTransport(Transport):
    """Moves tensors over a torch group: on the CPU where the group has gloo or MPI, else on the GPU through NCCL.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup
        The ranks. Pass ``torch.distributed.group.WORLD`` to mean all of them.
    device : torch.device, optional
        This rank's GPU; needed when the group has NCCL alone.
    timeout : float
        Seconds to wait for a peer.
    """

    name = "gloo"

    def __init__(self, group: Any, device: torch.device | None, timeout: float) -> None:
        import torch.distributed as dist

        if not isinstance(group, dist.ProcessGroup):
            raise ArgumentError.of(
                "Communicator.from_torch", "group", "a torch.distributed.ProcessGroup", type(group).__name__,
                "Pass torch.distributed.group.WORLD to mean all ranks.",
            )  # fmt: skip
        self.rank, self.size = group.rank(), group.size()
        self.timeout = timeout
        self.activity = "Communicator.from_torch"
        kinds = _backends_by_device(group)
        self.nccl_group: Any = group if kinds.get("cuda") == "nccl" else None
        if "cpu" not in kinds:
            if device is None or device.type != "cuda":
                raise ArgumentError.of(
                    "Communicator.from_torch", "device", "this rank's GPU for a group with NCCL alone", device
                )
            self.device = device
        self.name = kinds.get("cpu", "nccl")  # type: ignore[misc]
        # NCCL's limit stays the group's own: passing it ends the process, which is for its maker to decide.
        self._group = TorchCollectives(group, None if self.name == "nccl" else timeout)

    def exchange(self, payload: bytes) -> list[bytes]:
        lengths = torch.empty(self.size, dtype=torch.int64, device=self.device)
        own = torch.tensor([len(payload)], dtype=torch.int64, device=self.device)
        self._run(self._group.all_gather, lengths, own)
        counts = lengths.tolist()
        longest = max(counts)
        if longest == 0:
            return [b""] * self.size
        padded = torch.frombuffer(bytearray(payload.ljust(longest, b"\0")), dtype=torch.uint8).to(self.device)
        gathered = torch.empty(self.size * longest, dtype=torch.uint8, device=self.device)
        self._run(self._group.all_gather, gathered, padded)
        rows = gathered.view(self.size, longest).cpu().numpy()
        return [row[:count].tobytes() for row, count in zip(rows, counts, strict=True)]

    def all_gather(self, out: torch.Tensor, x: torch.Tensor) -> None:
        self._run(self._group.all_gather, out, x)

    def all_to_all(
        self, out: torch.Tensor, x: torch.Tensor, out_counts: Sequence[int], in_counts: Sequence[int]
    ) -> None:
        self._run(self._group.all_to_all, out, x, list(out_counts), list(in_counts))

    def close(self) -> None:
        """The group is the caller's."""

    def _run(self, collective: Any, *args: Any) -> None:
        try:
            collective(*args)
        except RuntimeError as error:
            self.fail(f"{self.name}: {error}")


def _backends_by_device(group: Any) -> dict[str, str]:
    """The group's backend for each device type, such as ``{"cpu": "gloo", "cuda": "nccl"}``."""
    import torch.distributed as dist

    config = str(dist.get_backend_config(group))  # "cpu:gloo,cuda:nccl"
    kinds = {device: kind for device, _, kind in (part.partition(":") for part in config.split(","))}
    # A group made with one backend names it for every device, also those that the backend can't serve.
    if kinds.get("cpu") == "nccl":
        del kinds["cpu"]
    return kinds
