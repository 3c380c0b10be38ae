"""`Communicator`: a group of ranks, their transport, their GPUs and their memory."""

from __future__ import annotations

import functools
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from warploom.comm import handles
from warploom.comm.peer_workspace import HEADER_BYTES, STAGING_BYTES, PeerWorkspace
from warploom.comm.symmetric import SymmetricBuffer
from warploom.comm.topology import MAX_PEERS, Topology, choose_device
from warploom.comm.torch_collectives import TorchCollectives, nccl_beside
from warploom.comm.transports import AloneTransport, MpiTransport, TorchTransport, Transport
from warploom.core.calls import Kept
from warploom.core.errors import CommunicationError, UnsupportedError
from warploom.core.settings import settings

if TYPE_CHECKING:
    from warploom.comm.repeated import RepeatedCall

__all__ = ["DEFAULT_WORKSPACE_BYTES", "Communicator"]

DEFAULT_WORKSPACE_BYTES = HEADER_BYTES + (32 << 20)  # one-shot up to 2 MiB and two-shot up to 8 MiB on 8 ranks
_MOST_REPEATED = 1024  # ragged shapes would otherwise make ever more


class Communicator:
    """Ranks that take part in collectives together. Made by `from_mpi`, `from_torch` or `single`.

    Several communicators may exist at once. One communicator's collectives must be called in the same order on every
    rank; calls on different streams are ordered as they are made (inside a CUDA graph, by the graph's edges).

    Attributes
    ----------
    rank, size : int
        This rank and the number of ranks.
    device : torch.device
        This rank's GPU, or the CPU. CPU tensors may be passed in either case.
    topology : Topology
        Hosts, GPUs and peer access of all ranks; ``print(comm.topology)``.
    transport : Transport
        How ranks exchange bytes without peer memory.
    timeout : float
        Seconds that a collective waits for a peer before it reports the fault.
    handle : int
        Its number among the communicators of this process.
    repeated : Kept
        Calls that were made before, by how their tensors lie (`repeated.py`).

    Examples
    --------
    >>> import torch
    >>> from warploom.comm import Communicator, all_reduce
    >>> with Communicator.single("cpu") as comm:
    ...     all_reduce(torch.ones(3), comm)
    tensor([1., 1., 1.])
    """

    def __init__(self, transport: Transport, device: torch.device, workspace_bytes: int) -> None:
        self.transport = transport
        self.rank, self.size = transport.rank, transport.size
        self.timeout = transport.timeout
        self.device = device
        self.calls = 0
        self.repeated: Kept[Any, RepeatedCall] = Kept(_MOST_REPEATED)
        self._buffers: list[SymmetricBuffer] = []
        self._closed = False
        self._nccl: TorchCollectives | None = None
        self._owns_nccl = False
        self.topology = Topology.discover(transport, device)
        self.why_no_peer_kernels = self._refusal_of_peer_kernels(workspace_bytes)
        self.peer_workspace: PeerWorkspace | None = None
        if not self.why_no_peer_kernels and self.size > 1:
            self._open_peer_workspace(workspace_bytes)
        self.handle = handles.register(self)

    @classmethod
    def from_mpi(
        cls,
        comm: Any = None,
        *,
        device: torch.device | str | int | None = None,
        timeout: float | None = None,
        workspace_bytes: int = DEFAULT_WORKSPACE_BYTES,
    ) -> Communicator:
        """Make a communicator of the ranks of an mpi4py communicator. Collective.

        Parameters
        ----------
        comm : mpi4py.MPI.Intracomm, optional
            The ranks; default ``MPI.COMM_WORLD``. It is duplicated, so messages never mix with the caller's.
        device : torch.device, str or int, optional
            This rank's GPU, or ``"cpu"``. Default: the current GPU if one was set, else the one with this process's
            number on its host, else the CPU.
        timeout : float, optional
            Seconds to wait for a peer; default the setting ``WARPLOOM_COMM_TIMEOUT``.
        workspace_bytes : int
            GPU memory for the mailboxes of the peer-memory kernels; it bounds the messages that they take, except those
            of backend "exchange", for which each GPU gives 8 MiB more. 0 goes without.

        Raises
        ------
        CommunicationError
            mpi4py is missing, or a rank did not come.
        """
        limit = settings.comm_timeout if timeout is None else timeout
        transport = MpiTransport(comm, limit)
        return cls(transport, choose_device(device, transport.rank), workspace_bytes)

    @classmethod
    def from_torch(
        cls,
        group: Any,
        *,
        device: torch.device | str | int | None = None,
        timeout: float | None = None,
        workspace_bytes: int = DEFAULT_WORKSPACE_BYTES,
    ) -> Communicator:
        """Make a communicator of the ranks of a torch.distributed process group. Collective.

        Parameters
        ----------
        group : torch.distributed.ProcessGroup
            The ranks; named explicitly, ``torch.distributed.group.WORLD`` for all. The group stays the caller's.
        device, timeout, workspace_bytes
            As in `from_mpi`.
        """
        limit = settings.comm_timeout if timeout is None else timeout
        rank = group.rank() if hasattr(group, "rank") else 0
        chosen = choose_device(device, rank)
        transport = TorchTransport(group, chosen, limit)
        communicator = cls(transport, chosen, workspace_bytes)
        if transport.nccl_group is not None:
            communicator._nccl = TorchCollectives(transport.nccl_group)
        return communicator

    @classmethod
    def single(cls, device: torch.device | str | int | None = None) -> Communicator:
        """Make a communicator of this process alone; every collective on it is a copy."""
        return cls(AloneTransport(), choose_device(device, 0), 0)

    def symmetric_buffer(self, nbytes: int) -> SymmetricBuffer:
        """Allocate `nbytes` on every rank, each mapped by all. Collective; not inside a CUDA-graph capture.

        Raises
        ------
        UnsupportedError
            The ranks are on several hosts, or two GPUs have no access to each other.
        CommunicationError
            The ranks ask for different sizes, or one of them can't allocate or map.
        """
        self.enter("symmetric_buffer")
        buffer = SymmetricBuffer(nbytes, self.device, self.transport, self.topology)
        self._buffers.append(buffer)
        return buffer

    def barrier(self) -> None:
        """Return once every rank has come. Waits for the host only: queued GPU work may still run."""
        self.enter("barrier")
        self.transport.barrier()

    def check(self) -> None:
        """Raise what a collective on the GPU has reported so far.

        Kernels can't raise: they stop waiting after the timeout, write NaN and leave a report. Each later call looks at
        it; call this after a synchronisation to be sure that what was queued went well.

        Raises
        ------
        CommunicationError
            Naming this rank, the operation, the number of the call and whom it waited for.
        """
        if self.peer_workspace is not None:
            self.peer_workspace.check()

    def nccl(self) -> TorchCollectives:
        """The NCCL group of these ranks; the first call makes one, collectively, unless the torch group has it."""
        if self._nccl is None:
            self._nccl = nccl_beside(self.transport, self.device, self.topology.one_host)
            self._owns_nccl = True
            self.repeated.clear()  # backends were chosen without it
        return self._nccl

    def why_no_nccl(self, capturing: bool) -> str:
        """Why NCCL can't serve these ranks now; empty when it can."""
        if self._nccl is not None:
            return ""
        if self._why_never_nccl:
            return self._why_never_nccl
        if capturing:
            return "its group is made by the first call, which can't be captured: make one call before the capture"
        return ""

    def enter(self, op: str) -> None:
        """Count a call of an operation, and raise unless the communicator can serve it."""
        self.require_open(op)
        self.calls += 1
        self.transport.activity = f"{op}, call {self.calls}"

    def agree(self, op: str, terms: Any, *, always: bool) -> list[Any]:
        """Count a collective, and compare its terms across ranks if the tensors are on the CPU or checks are on.

        Returns
        -------
        list
            The terms of every rank; only this rank's, repeated, when nothing was exchanged.

        Raises
        ------
        CommunicationError
            The ranks call different operations, or with different terms. All ranks raise and stay usable.
        """
        self.enter(op)
        if self.size == 1 or not (always or settings.debug_checks):
            return [terms] * self.size
        everyone = self.transport.exchange_objects((self.calls, op, terms))
        if any(other[:2] != everyone[0][:2] for other in everyone):
            table = "; ".join(f"rank {rank}: {name} (call {call})" for rank, (call, name, _) in enumerate(everyone))
            raise CommunicationError(f"rank {self.rank}: ranks call different operations: {table}")
        return [other[2] for other in everyone]

    def require_open(self, op: str) -> None:
        """Raise unless the communicator can serve another call."""
        if self._closed:
            raise CommunicationError(f"{op}: the communicator is closed")
        if self.transport.failure:
            raise CommunicationError(
                f"{op}: the communicator failed before ({self.transport.failure}); close it and make a new one"
            )
        self.check()

    def close(self) -> None:
        """Give back memory and groups. Collective unless a call failed; closing again does nothing."""
        if self._closed:
            return
        healthy = not self.transport.failure
        try:
            if healthy:
                self.transport.activity = "close"
                self.check()
        except CommunicationError:
            healthy = False
        self._release(healthy)

    def __del__(self) -> None:
        # Dropped without close: the memory stays allocated, since peers may still be writing to it.
        if not getattr(self, "_closed", True):
            self._release(wait=False)

    def __enter__(self) -> Communicator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif not self._closed:
            self._release(wait=False)  # the other ranks may never come to a collective close

    def __repr__(self) -> str:
        state = "closed" if self._closed else self.transport.name
        return f"Communicator(rank={self.rank}, size={self.size}, device={str(self.device)!r}, {state})"

    @functools.cached_property
    def _why_never_nccl(self) -> str:
        """Why NCCL can't serve these ranks at all; empty when it can."""
        import torch.distributed as dist

        if not dist.is_available() or not dist.is_nccl_available():
            return "this torch has no NCCL"
        if self.device.type != "cuda":
            return f"the communicator's device is the {self.device.type.upper()}"
        return "NCCL refuses ranks that share a GPU" if self.topology.shares_gpus else ""

    def _refusal_of_peer_kernels(self, workspace_bytes: int) -> str:
        if self.device.type != "cuda":
            return "the communicator's device is the CPU"
        if self.size > 1 and workspace_bytes <= HEADER_BYTES:
            return f"the communicator was made with workspace_bytes={workspace_bytes}"
        if self.size > MAX_PEERS:
            return f"the kernels take up to {MAX_PEERS} ranks, there are {self.size}"
        return self.topology.why_no_peer_memory

    def _open_peer_workspace(self, workspace_bytes: int) -> None:
        try:
            nbytes = workspace_bytes + STAGING_BYTES
            buffer = SymmetricBuffer(nbytes, self.device, self.transport, self.topology)
        except (CommunicationError, UnsupportedError) as error:
            if self.transport.failure:
                raise
            # Raised on all ranks alike: NCCL serves them instead, and `explain` says why.
            self.why_no_peer_kernels = str(error)
            return
        self._buffers.append(buffer)
        self.peer_workspace = PeerWorkspace(buffer, self.rank, self.timeout)
        self.transport.barrier()  # no rank sends before all mailboxes are empty

    def _release(self, wait: bool) -> None:
        self._closed = True
        self.peer_workspace = None
        self.repeated.clear()
        try:
            for buffer in reversed(self._buffers):
                buffer.close(wait)
            if self._owns_nccl and self._nccl is not None and wait:
                self._nccl.close()
        finally:
            self._buffers.clear()
            self._nccl = None
            if wait:
                self.transport.close()
