"""The communicator of a run, what its links carry, targets by number of ranks, and how sums are checked."""

from __future__ import annotations

import atexit
import functools
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from warploom.comm import Communicator
from warploom.core.bench import Target
from warploom.core.bench.ranks import current_ranks
from warploom.core.testing import assert_close

KIB, MIB = 1 << 10, 1 << 20
CALLS = 20
# Mailboxes for 64 MiB in two shots, and for 16 MiB in one shot on 8 ranks.
WORKSPACE_BYTES = 256 * MIB + 4096


@functools.cache
def ranks_on(device: torch.device) -> SimpleNamespace:
    """The communicator of this run and, on GPUs, a torch group for the peers."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    comm = Communicator.from_mpi(device=device, timeout=30.0, workspace_bytes=WORKSPACE_BYTES)
    problem = "needs several GPUs" if device.type == "cpu" or comm.size == 1 else ""
    problem = problem or ("NCCL refuses ranks that share a GPU" if comm.topology.shares_gpus else "")
    if not problem:
        _start_torch_group(comm)
    atexit.register(_stop, comm)
    reaches = device.type == "cuda" and comm.size > 1 and not comm.topology.why_no_peer_memory
    rate = link_rate(comm) if reaches else 0.0
    if rate and comm.rank == 0:
        print(
            f"links: {rate:.0f} GB/s sent by each of {comm.size} GPUs to all others at once, by copy engines",
            flush=True,
        )
    return SimpleNamespace(comm=comm, no_group=problem, link_gbs=rate)


def link_rate(comm: Communicator) -> float:
    """GB/s that each GPU sends when all copy to all others: a ceiling of what kernels send."""
    from cuda.bindings import runtime

    part, rounds = 64 * MIB, 5
    buffer = comm.symmetric_buffer(comm.size * part)
    source = torch.empty(part, dtype=torch.uint8, device=comm.device)
    streams = [torch.cuda.Stream() for _ in range(comm.size)]
    best = 0.0
    for _ in range(3):
        torch.cuda.synchronize()
        comm.barrier()
        start, ends = torch.cuda.Event(enable_timing=True), []
        start.record()
        for hop in range(1, comm.size):
            stream, peer = streams[hop], (comm.rank + hop) % comm.size
            stream.wait_event(start)
            for _ in range(rounds):
                to, kind = buffer.pointers[peer] + comm.rank * part, runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
                runtime.cudaMemcpyAsync(to, source.data_ptr(), part, kind, stream.cuda_stream)
            ends.append(torch.cuda.Event(enable_timing=True))
            ends[-1].record(stream)
        torch.cuda.synchronize()
        slowest = max(start.elapsed_time(end) for end in ends)
        best = max(best, (comm.size - 1) * part * rounds / slowest / 1e6)
    buffer.close()
    return min(comm.transport.exchange_objects(best))


@functools.cache
def number_of_ranks() -> int:
    return current_ranks().size


def target(parameter: str, of_ranks: dict[int, dict[int, float]]) -> Target:
    """Microseconds that cases should take on so many H200, by a parameter of the case."""
    return Target("NVIDIA H200", lambda case: of_ranks.get(number_of_ranks(), {}).get(getattr(case, parameter)))


def sending(nbytes: Callable[[Any, int], float]) -> Callable[[Any], float]:
    """The least time to send ``nbytes(work, ranks)`` bytes from each GPU."""

    def least_us(work: Any) -> float:
        ranks = work.ranks
        return nbytes(work, ranks.comm.size) / ranks.link_gbs / 1e3 if ranks.link_gbs else 0.0

    return least_us


def _start_torch_group(comm: Communicator) -> None:
    limit = timedelta(seconds=60)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) if comm.rank == 0 else None
    port = comm.transport.exchange_objects(store.port if store else 0)[0]
    store = store or dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group(
        "nccl", store=store, rank=comm.rank, world_size=comm.size, timeout=limit, device_id=comm.device
    )


def _stop(comm: Communicator) -> None:
    comm.close()
    if dist.is_initialized():
        dist.destroy_process_group()


def no_nccl(work: Any) -> str:
    return work.ranks.no_group


def draw(comm: Communicator, shape: tuple[int, ...], seed: int) -> list[torch.Tensor]:
    """The bf16 messages of all ranks, drawn alike on each."""
    generator = torch.Generator(comm.device).manual_seed(seed)
    return [torch.randn(shape, generator=generator, device=comm.device, dtype=torch.bfloat16) for _ in range(comm.size)]


def total(messages: list[torch.Tensor]) -> torch.Tensor:
    """The sum in float32 and rank order, without a float32 copy of all messages at once."""
    result = messages[0].float()
    for message in messages[1:]:
        result += message
    return result


def check_sum(work: Any, actual: Any, expected: Any) -> None:
    """NCCL rounds to bf16 at every hop; ours is checked bit for bit in the tests."""
    rounding = 0.01 * work.ranks.comm.size
    assert_close(actual, expected, rtol=rounding, atol=rounding)
