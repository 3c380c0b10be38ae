"""All-gather, reduce-scatter and all-to-all, against NCCL."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from warploom.comm import all_gather, all_to_all, reduce_scatter
from warploom.core.bench import Benchmark, Peer, Work, grid

from .ranks import CALLS, KIB, MIB, check_sum, draw, no_nccl, ranks_on, sending, total


def make_moving(case: SimpleNamespace, device: torch.device) -> Work:
    ranks = ranks_on(device)
    size = ranks.comm.size
    messages = draw(ranks.comm, (size * (case.nbytes // 2 // size),), seed=2)
    return Work(ranks=ranks, x=messages[ranks.comm.rank], messages=messages)


def my_part(work: Any, x: torch.Tensor) -> torch.Tensor:
    return x.chunk(work.ranks.comm.size)[work.ranks.comm.rank]


def nccl_all_gather(work: Any) -> torch.Tensor:
    gathered = torch.empty(work.ranks.comm.size * work.x.numel(), dtype=work.x.dtype, device=work.x.device)
    dist.all_gather_into_tensor(gathered, work.x)
    return gathered


def nccl_all_to_all(work: Any) -> torch.Tensor:
    received = torch.empty_like(work.x)
    dist.all_to_all_single(received, work.x)
    return received


def nccl_reduce_scatter(work: Any) -> torch.Tensor:
    part = torch.empty_like(my_part(work, work.x))
    dist.reduce_scatter_tensor(part, work.x)
    return part


ALL_GATHER = Benchmark(
    "all_gather",
    cases=grid(nbytes=[16 * KIB, 128 * KIB, MIB, 4 * MIB, 16 * MIB]),
    make=make_moving,
    least_us=sending(lambda work, n: (n - 1) * work.x.nbytes),
    ours=lambda work, backend: all_gather(work.x, work.ranks.comm, backend=backend),
    reference=lambda work: torch.cat(work.messages),
    peers=[Peer("nccl", nccl_all_gather, no_nccl)],
    calls=CALLS,
    flush=False,
)
REDUCE_SCATTER = Benchmark(
    "reduce_scatter",
    cases=grid(nbytes=[16 * KIB, 128 * KIB, MIB, 4 * MIB, 16 * MIB]),
    make=make_moving,
    least_us=sending(lambda work, n: (n - 1) / n * work.x.nbytes),
    ours=lambda work, backend: reduce_scatter(work.x, work.ranks.comm, backend=backend),
    reference=lambda work: my_part(work, total(work.messages)),
    peers=[Peer("nccl", nccl_reduce_scatter, no_nccl)],
    check=check_sum,
    calls=CALLS,
    flush=False,
)

ALL_TO_ALL = Benchmark(
    "all_to_all",
    cases=grid(nbytes=[16 * KIB, 128 * KIB, MIB, 4 * MIB, 16 * MIB]),
    make=make_moving,
    least_us=sending(lambda work, n: (n - 1) / n * work.x.nbytes),
    ours=lambda work, backend: all_to_all(work.x, work.ranks.comm, backend=backend),
    reference=lambda work: torch.cat([my_part(work, message) for message in work.messages]),
    peers=[Peer("nccl", nccl_all_to_all, no_nccl)],
    calls=CALLS,
    flush=False,
)

BENCHMARKS = [ALL_GATHER, REDUCE_SCATTER, ALL_TO_ALL]
