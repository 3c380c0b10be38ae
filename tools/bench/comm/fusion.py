"""All-reduce + residual + RMSNorm, against NCCL and torch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from warploom.comm import AllReduceFusionPattern, allreduce_fusion, create_allreduce_fusion_workspace
from warploom.core.bench import Benchmark, Peer, Work, grid
from warploom.core.testing import random_normal

from .ranks import CALLS, check_sum, draw, no_nccl, ranks_on, sending, target, total


def make_fusion(case: SimpleNamespace, device: torch.device) -> Work:
    ranks = ranks_on(device)
    shape = (case.tokens, case.hidden)
    messages = draw(ranks.comm, shape, seed=3)
    residual = random_normal(shape, torch.bfloat16, seed=4, device=device)
    gamma = random_normal((case.hidden,), torch.bfloat16, seed=5, device=device)
    workspace = create_allreduce_fusion_workspace(
        ranks.comm, max_token_num=case.tokens, hidden_dim=case.hidden, dtype=torch.bfloat16
    )
    x = messages[ranks.comm.rank]
    added = total(messages).to(torch.bfloat16) + residual
    return Work(
        ranks=ranks, x=x, residual=residual, gamma=gamma, workspace=workspace, out=torch.empty_like(x),
        residual_out=torch.empty_like(x), for_nccl=x.clone(),
        expected=torch.nn.functional.rms_norm(added.float(), (case.hidden,), gamma.float(), 1e-6),
    )  # fmt: skip


def our_fusion(work: Any, backend: str) -> torch.Tensor:
    return allreduce_fusion(
        work.x, work.workspace, AllReduceFusionPattern.kARResidualRMSNorm, residual_in=work.residual,
        residual_out=work.residual_out, norm_out=work.out, rms_gamma=work.gamma, backend=backend,
    )  # fmt: skip


def nccl_fusion(work: Any) -> torch.Tensor:
    dist.all_reduce(work.for_nccl)
    torch.add(work.for_nccl, work.residual, out=work.residual_out)
    return torch.nn.functional.rms_norm(work.residual_out, work.gamma.shape, work.gamma, 1e-6)


FUSION = Benchmark(
    "all_reduce + residual + rms_norm",
    operator="allreduce_fusion",
    cases=grid(tokens=[1, 4, 16, 64, 128, 256, 512, 1024, 2048], hidden=[8192]),
    make=make_fusion,
    least_us=sending(lambda work, n: 2 * (n - 1) / n * work.x.nbytes),
    target=target("tokens", {8: {1: 8, 16: 9, 128: 20, 1024: 115}}),
    ours=our_fusion,
    reference=lambda work: work.expected,
    peers=[Peer("nccl + torch", nccl_fusion, no_nccl)],
    check=check_sum,
    calls=CALLS,
    flush=False,
)

BENCHMARKS = [FUSION]
