"""Expert-parallel dispatch and combine, beside NCCL's all-to-all of all tokens."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from warploom.comm import MoeAlltoAll
from warploom.core.bench import Benchmark, Peer, Work, grid
from warploom.core.testing import random_normal

from .ranks import CALLS, check_sum, no_nccl, ranks_on, sending, target

HIDDEN, TOP_K, EXPERTS = 7168, 8, 256


def make_moe(case: SimpleNamespace, device: torch.device) -> Work:
    """fp8 hidden states with a float32 scale for 128 columns go out, bf16 results come back."""
    ranks = ranks_on(device)
    comm = ranks.comm
    generator = torch.Generator().manual_seed(comm.rank)
    experts = torch.rand(case.max_tokens, EXPERTS, generator=generator).argsort(1)[:, :TOP_K].to(torch.int32).to(device)
    hidden = random_normal((case.max_tokens, HIDDEN), torch.float8_e4m3fn, seed=comm.rank, device=device)
    scales = torch.rand(case.max_tokens, HIDDEN // 128, device=device)
    results = random_normal((comm.size, case.max_tokens, HIDDEN), torch.bfloat16, seed=6, device=device)
    work = Work(ranks=ranks, experts=experts, payloads=[hidden, scales, experts], results=results)
    work.moe = functools.cache(lambda backend: MoeAlltoAll(comm, case.max_tokens, TOP_K, EXPERTS, backend=backend))
    work.slots = {}
    work.dense = torch.empty_like(results)
    return work


def ranks_of_tokens(work: Any) -> torch.Tensor:
    """Whether a token goes to a rank, ``[tokens, size]``."""
    size = work.ranks.comm.size
    owner = work.experts.long() // (EXPERTS // size)
    return torch.zeros(owner.shape[0], size, dtype=torch.bool, device=owner.device).scatter(1, owner, True)


def rows_sent(work: Any) -> int:
    """Rows that this rank's tokens send to others, and get back."""
    chosen = ranks_of_tokens(work)
    chosen[:, work.ranks.comm.rank] = False
    return int(chosen.sum())


def our_dispatch(work: Any, backend: str) -> list[torch.Tensor]:
    moe = work.moe(backend)
    received = moe.dispatch(work.experts, work.payloads, work.experts.shape[0])
    moe._slots = None  # without its combine, as only a benchmark may: every call brings the same rows
    return received


def dispatched(work: Any) -> list[torch.Tensor]:
    """What arrives by the reference; rows past the counts are not compared."""
    received = our_dispatch(work, "reference")
    work.counts = work.moe("reference").recv_counts
    return received


def check_rows(work: Any, actual: Any, expected: Any) -> None:
    for ours, theirs in zip(actual, expected, strict=True):
        for rank, count in enumerate(work.counts.tolist()):
            assert torch.equal(ours[rank, :count].view(torch.uint8), theirs[rank, :count].view(torch.uint8)), rank


def our_combine(work: Any, backend: str) -> torch.Tensor:
    moe = work.moe(backend)
    if backend not in work.slots:
        moe.dispatch(work.experts, work.payloads, work.experts.shape[0])
        work.slots[backend] = moe._slots
    moe._slots = work.slots[backend]  # one dispatch for all calls, as only a benchmark may
    return moe.combine(work.results, work.experts.shape[0])


def combined(work: Any) -> torch.Tensor:
    """Every rank returns the same made-up results, so a token's sum is known from its ranks and its place on each."""
    comm = work.ranks.comm
    chosen = ranks_of_tokens(work)
    place = chosen.cumsum(0) - 1
    rows = work.results[comm.rank].float()  # what each rank holds for this one
    return sum(torch.where(chosen[:, r, None], rows[place[:, r].clamp_min(0)], 0.0) for r in range(comm.size))


def dense_all_to_all(work: Any) -> torch.Tensor:
    dist.all_to_all_single(work.dense, work.results)
    return work.dense


DENSE = Peer("nccl, dense bf16", dense_all_to_all, no_nccl, verified=False)
MOE_DISPATCH = Benchmark(
    "moe dispatch",
    operator="moe_dispatch",
    cases=grid(max_tokens=[1, 16, 64, 128, 256, 512, 4096]),
    make=make_moe,
    least_us=sending(lambda work, n: rows_sent(work) * sum(x[0].nbytes for x in work.payloads)),
    target=target("max_tokens", {8: {128: 30, 4096: 485}}),  # 4096: 290 GB/s, each peer gets 66 % of the tokens
    ours=our_dispatch,
    reference=dispatched,
    peers=[DENSE],
    check=check_rows,
    calls=CALLS,
    flush=False,
)
MOE_COMBINE = Benchmark(
    "moe combine",
    operator="moe_combine",
    cases=grid(max_tokens=[1, 16, 64, 128, 256, 512, 4096]),
    make=make_moe,
    least_us=sending(lambda work, n: rows_sent(work) * HIDDEN * 2),
    target=target("max_tokens", {8: {128: 45, 4096: 938}}),
    ours=our_combine,
    reference=combined,
    peers=[DENSE],
    check=check_sum,
    calls=CALLS,
    flush=False,
)

BENCHMARKS = [MOE_DISPATCH, MOE_COMBINE]
