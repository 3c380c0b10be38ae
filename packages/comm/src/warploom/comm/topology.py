"""Where the ranks are and which of them reach one another's memory."""

from __future__ import annotations

import functools
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import torch

from warploom.comm import cuda_memory
from warploom.comm.transports import Transport
from warploom.core.errors import ArgumentError

__all__ = ["MAX_PEERS", "Topology", "choose_device"]

MAX_PEERS = 8  # ranks that the kernels' pointer tables hold

_LOCAL_RANK_VARIABLES = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID")


@dataclass(frozen=True)
class Topology:
    """Hosts, GPUs and links of a communicator's ranks; the same on every rank.

    Attributes
    ----------
    hosts : tuple of str
        The host of each rank.
    devices : tuple of str
        The PCI bus id of each rank's GPU, or ``"cpu"``.
    access : tuple of tuple of bool
        ``access[i][j]``: rank i's device reads and writes memory of rank j's.
    """

    hosts: tuple[str, ...]
    devices: tuple[str, ...]
    access: tuple[tuple[bool, ...], ...]

    @classmethod
    def discover(cls, transport: Transport, device: torch.device) -> Topology:
        """Ask every rank. Collective."""
        ranks = transport.exchange_objects((_host_identity(), _device_identity(device)))
        hosts = tuple(host for host, _ in ranks)
        devices = tuple(identity for _, identity in ranks)
        kinds = {identity == "cpu" for identity in devices}
        if len(kinds) > 1:
            raise ArgumentError.of(
                "Communicator", "device", "a GPU on all ranks or the CPU on all", dict(enumerate(devices))
            )
        row = tuple(
            host == hosts[transport.rank] and (device.type == "cpu" or cuda_memory.reaches(device, identity))
            for host, identity in ranks
        )
        return cls(hosts, devices, tuple(tuple(other) for other in transport.exchange_objects(row)))

    @property
    def size(self) -> int:
        return len(self.hosts)

    @property
    def one_host(self) -> bool:
        return len(set(self.hosts)) == 1

    @functools.cached_property
    def shares_gpus(self) -> bool:
        """Whether two ranks use the same GPU."""
        places = list(zip(self.hosts, self.devices, strict=True))
        return self.devices[0] != "cpu" and len(set(places)) < len(places)

    @functools.cached_property
    def why_no_peer_memory(self) -> str:
        """Why ranks can't map one another's memory; empty when they can."""
        if not self.one_host:
            return f"peer memory needs one host, the ranks are on {len(set(self.hosts))}"
        for rank, row in enumerate(self.access):
            for peer, reached in enumerate(row):
                if not reached:
                    return f"rank {rank} (GPU {self.devices[rank]}) can't reach rank {peer} (GPU {self.devices[peer]})"
        return ""

    def __str__(self) -> str:
        lines = [f"{self.size} rank(s) on {len(set(self.hosts))} host(s)"]
        for rank, (device, row) in enumerate(zip(self.devices, self.access, strict=True)):
            reached = ", ".join(str(peer) for peer, yes in enumerate(row) if yes and peer != rank)
            lines.append(f"  rank {rank}: {device}, reaches the memory of rank {reached or '-'}")
        return "\n".join(lines)


def choose_device(device: torch.device | str | int | None, rank: int) -> torch.device:
    """The given device; by default the current GPU, or the one numbered like this process on its host; else the CPU."""
    if device is not None:
        chosen = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        if chosen.type not in ("cpu", "cuda"):
            raise ArgumentError.of("Communicator", "device", "a GPU or the CPU", str(chosen))
        if chosen.type == "cuda" and chosen.index is None:
            return torch.device("cuda", torch.cuda.current_device())
        return chosen
    if not torch.cuda.is_available():
        return torch.device("cpu")
    current = torch.cuda.current_device()
    if current:  # set on purpose: 0 is what every process starts with
        return torch.device("cuda", current)
    local = next((int(os.environ[name]) for name in _LOCAL_RANK_VARIABLES if name in os.environ), rank)
    return torch.device("cuda", local % torch.cuda.device_count())


def _host_identity() -> str:
    """The host name, with the kernel's boot id because hosts of a cluster may share a name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return f"{socket.gethostname()} {boot}".strip()


def _device_identity(device: torch.device) -> str:
    return "cpu" if device.type == "cpu" else cuda_memory.bus_id(device)
