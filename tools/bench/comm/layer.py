"""What lies between two attentions of a transformer, products included, against NCCL and torch.

The weights are those that one of 8 GPUs has of a model of 70 billion parameters, whatever the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from warploom.comm import AllReduceFusionPattern, all_reduce, allreduce_fusion, create_allreduce_fusion_workspace
from warploom.core.bench import Benchmark, Peer, Work, grid
from warploom.core.testing import random_normal
from warploom.gemm import mm_bf16

from .ranks import check_sum, no_nccl, ranks_on

# Of (work, x, residual, outputs): the norm, and the sum of x and the residual.
Norm = Callable[[Any, torch.Tensor, torch.Tensor, list[torch.Tensor]], tuple[torch.Tensor, torch.Tensor]]

CALLS = 5
HIDDEN, HEADS, FF, QKV = 8192, 1024, 3584, 1280


def make_layer(case: SimpleNamespace, device: torch.device) -> Work:
    ranks, tokens = ranks_on(device), case.tokens
    workspace = create_allreduce_fusion_workspace(
        ranks.comm, max_token_num=tokens, hidden_dim=HIDDEN, dtype=torch.bfloat16
    )
    generator = torch.Generator(device).manual_seed(ranks.comm.rank)

    def draw_own(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(shape, generator=generator, device=device) * scale).to(torch.bfloat16)

    sizes = {"o": (HIDDEN, HEADS), "up": (2 * FF, HIDDEN), "down": (HIDDEN, FF), "qkv": (QKV, HIDDEN)}
    return Work(
        ranks=ranks, workspace=workspace, heads=draw_own(tokens, HEADS),
        residual=random_normal((tokens, HIDDEN), torch.bfloat16, seed=2, device=device),
        gamma=random_normal((HIDDEN,), torch.bfloat16, seed=3, device=device),
        weights={name: draw_own(n, k, scale=k**-0.5).t() for name, (n, k) in sizes.items()},
        products={name: torch.empty(tokens, n, dtype=torch.bfloat16, device=device) for name, (n, _) in sizes.items()},
        norms=[torch.empty(tokens, HIDDEN, dtype=torch.bfloat16, device=device) for _ in range(4)],
    )  # fmt: skip


def layer(work: Any, product: Callable[..., Any], norm: Norm) -> torch.Tensor:
    """Output of attention, all-reduce and norm, feed-forward (its activation left out), the same again, the next QKV."""
    weights, out = work.weights, work.products
    product(work.heads, weights["o"], out=out["o"])
    normed, residual = norm(work, out["o"], work.residual, work.norms[:2])
    product(normed, weights["up"], out=out["up"])
    product(out["up"][:, :FF], weights["down"], out=out["down"])
    normed, _ = norm(work, out["down"], residual, work.norms[2:])
    product(normed, weights["qkv"], out=out["qkv"])
    return out["qkv"]


def fused_norm(
    work: Any, x: torch.Tensor, residual: torch.Tensor, outs: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    allreduce_fusion(x, work.workspace, AllReduceFusionPattern.kARResidualRMSNorm, residual_in=residual, norm_out=outs[0],
                     residual_out=outs[1], rms_gamma=work.gamma)  # fmt: skip
    return outs[0], outs[1]


def nccl_norm(
    work: Any, x: torch.Tensor, residual: torch.Tensor, outs: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    dist.all_reduce(x)
    torch.add(x, residual, out=outs[1])
    return torch.nn.functional.rms_norm(outs[1], work.gamma.shape, work.gamma, 1e-6), outs[1]


def reference_layer(work: Any) -> torch.Tensor:
    def product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
        out.copy_(a.float() @ b.float())

    def norm(
        work: Any, x: torch.Tensor, residual: torch.Tensor, outs: list[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        added = all_reduce(x, work.ranks.comm, backend="reference") + residual
        normed = torch.nn.functional.rms_norm(added.float(), work.gamma.shape, work.gamma.float(), 1e-6)
        return normed.to(x.dtype), added

    return layer(work, product, norm).clone()


LAYER = Benchmark(
    "layer",
    cases=grid(tokens=[1, 16, 64, 128, 512]),
    make=make_layer,
    bytes=lambda work: sum(weight.nbytes for weight in work.weights.values()),
    ours=lambda work, backend: layer(work, mm_bf16, fused_norm),
    reference=reference_layer,
    peers=[Peer("nccl + torch", lambda work: layer(work, torch.mm, nccl_norm), no_nccl)],
    check=check_sum,
    calls=CALLS,
    flush=False,
)

BENCHMARKS = [LAYER]
