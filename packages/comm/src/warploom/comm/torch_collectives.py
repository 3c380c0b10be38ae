"""The collectives of a torch process group, NCCL's above all."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from warploom.comm.transports.base import Transport

__all__ = ["TorchCollectives", "nccl_beside"]


class TorchCollectives:
    """Collectives of a process group or of a bare backend object. On a GPU they block the current stream only.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup or its backend
        What carries them. Bare backend objects are in no registry of torch, so the methods are called directly.
    timeout : float, optional
        Seconds to wait for a peer; None leaves that to the group.
    store : torch.distributed.Store, optional
        Kept alive as long as the group: its watchdog reads it.
    """

    def __init__(self, group: Any, timeout: float | None = None, store: Any = None) -> None:
        self._group = group
        self._timeout = None if timeout is None else timedelta(seconds=timeout)
        self._store = store

    def all_reduce(self, x: torch.Tensor, op: str) -> None:
        """Reduce in place."""
        from torch.distributed import AllreduceOptions

        options = self._options(AllreduceOptions())
        options.reduceOp = _reduce_op(op)
        self._wait(self._group.allreduce([x], options))

    def all_gather(self, out: torch.Tensor, x: torch.Tensor) -> None:
        """Concatenate the ranks' equally long ``x`` into ``out``."""
        from torch._C._distributed_c10d import AllgatherOptions

        self._wait(self._group._allgather_base(out, x, self._options(AllgatherOptions())))

    def reduce_scatter(self, out: torch.Tensor, x: torch.Tensor, op: str) -> None:
        """Reduce ``x`` and keep this rank's equal part of it in ``out``."""
        from torch.distributed import ReduceScatterOptions

        options = self._options(ReduceScatterOptions())
        options.reduceOp = _reduce_op(op)
        self._wait(self._group._reduce_scatter_base(out, x, options))

    def all_to_all(self, out: torch.Tensor, x: torch.Tensor, out_rows: list[int], in_rows: list[int]) -> None:
        """Exchange rows: ``in_rows[r]`` of ``x`` go to rank r, ``out_rows[r]`` of ``out`` come from it."""
        from torch.distributed import AllToAllOptions

        self._wait(self._group.alltoall_base(out, x, out_rows, in_rows, self._options(AllToAllOptions())))

    def close(self) -> None:
        """End the group; for groups that this library made."""
        name = "shutdown" if hasattr(self._group, "shutdown") else "_shutdown"  # torch 2.6 has the latter
        getattr(self._group, name)()

    def _options(self, options: Any) -> Any:
        if self._timeout is not None:
            options.timeout = self._timeout
        return options

    def _wait(self, work: Any) -> None:
        if work is not None:
            work.wait()


def _reduce_op(op: str) -> Any:
    from torch.distributed import ReduceOp

    return {"sum": ReduceOp.SUM, "avg": ReduceOp.AVG, "max": ReduceOp.MAX, "min": ReduceOp.MIN}[op]


def nccl_beside(transport: Transport, device: torch.device, one_host: bool) -> TorchCollectives:
    """Make an NCCL group over the ranks of a transport, without touching torch's default group. Collective.

    The ranks meet at a key-value store that rank 0 opens and whose address the transport passes on.
    """
    import socket

    import torch.distributed as dist

    limit = timedelta(seconds=transport.timeout)
    store: Any = None
    port = 0
    host = "127.0.0.1" if one_host else socket.gethostname()
    if transport.rank == 0:
        store = dist.TCPStore(host, 0, transport.size, is_master=True, timeout=limit, wait_for_workers=False)
        port = store.port
    host, port = transport.exchange_objects((host, port))[0]
    if store is None:
        store = dist.TCPStore(host, port, transport.size, is_master=False, timeout=limit, wait_for_workers=False)
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = limit
    options.global_ranks_in_group = list(range(transport.size))
    with torch.cuda.device(device):
        nccl = dist.ProcessGroupNCCL(dist.PrefixStore("warploom", store), transport.rank, transport.size, options)
        group = TorchCollectives(nccl, store=store)
        # NCCL connects at the first collective; one now keeps that out of a later graph capture.
        group.all_reduce(torch.zeros(1, device=device), "sum")
        torch.cuda.synchronize(device)
    return group
