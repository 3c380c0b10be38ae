"""All-reduce, against NCCL and torch symmetric memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from warploom.comm import all_reduce
from warploom.core.bench import Benchmark, Peer, Work, grid

from .ranks import CALLS, KIB, MIB, check_sum, draw, no_nccl, ranks_on, sending, target, total


def make_all_reduce(case: SimpleNamespace, device: torch.device) -> Work:
    ranks = ranks_on(device)
    messages = draw(ranks.comm, (case.nbytes // 2,), seed=1)
    x = messages[ranks.comm.rank]
    work = Work(ranks=ranks, x=x, out=torch.empty_like(x), expected=total(messages))
    if not ranks.no_group:
        work.for_nccl = x.clone()
        work.symmetric, work.no_symmetric = _symmetric(x)
    return work


def _symmetric(x: torch.Tensor) -> tuple[torch.Tensor | None, str]:
    """A copy in torch's symmetric memory, or why there is none."""
    try:
        import torch.distributed._symmetric_memory as symmetric_memory

        copy = symmetric_memory.empty(x.numel(), dtype=x.dtype, device=x.device)
        symmetric_memory.rendezvous(copy, dist.group.WORLD.group_name)
    except (ImportError, AttributeError, RuntimeError, TypeError) as error:
        return None, f"torch symmetric memory: {error}"
    return copy.copy_(x), ""


def no_symmetric_memory(work: Any) -> str:
    return work.ranks.no_group or work.no_symmetric


def nccl_all_reduce(work: Any) -> torch.Tensor:
    dist.all_reduce(work.for_nccl)  # in place, as NCCL is called in practice
    return work.for_nccl


def torch_one_shot(work: Any) -> torch.Tensor:
    return torch.ops.symm_mem.one_shot_all_reduce(work.symmetric, "sum", dist.group.WORLD.group_name)


def torch_two_shot(work: Any) -> torch.Tensor:
    return torch.ops.symm_mem.two_shot_all_reduce_(work.symmetric, "sum", dist.group.WORLD.group_name)


ALL_REDUCE = Benchmark(
    "all_reduce",
    cases=grid(
        nbytes=[*(n * KIB for n in (8, 16, 64, 128, 256, 512)), *(n * MIB for n in (1, 2, 4, 8, 16, 64))],
    ),
    quick=grid(nbytes=[16 * KIB, MIB]),
    make=make_all_reduce,
    least_us=sending(lambda work, n: 2 * (n - 1) / n * work.x.nbytes),
    target=target(
        "nbytes",
        {
            4: {8 * KIB: 5.5, MIB: 12.5},
            8: {
                8 * KIB: 6.5,
                16 * KIB: 6.5,
                128 * KIB: 9,
                512 * KIB: 11.5,
                MIB: 13.5,
                4 * MIB: 29,
                16 * MIB: 100,
                64 * MIB: 365,
            },
        },
    ),
    ours=lambda work, backend: all_reduce(work.x, work.ranks.comm, out=work.out, backend=backend),
    reference=lambda work: work.expected,
    # One-shot before two-shot: the latter changes its input in place, and both have the same.
    peers=[
        Peer("nccl", nccl_all_reduce, no_nccl),
        Peer("torch one-shot", torch_one_shot, no_symmetric_memory),
        Peer("torch two-shot", torch_two_shot, no_symmetric_memory),
    ],
    check=check_sum,
    calls=CALLS,
    flush=False,
)

BENCHMARKS = [ALL_REDUCE]
