"""Softmax, renormalised probabilities, masked logits, top-k selection."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from warploom import sampling
from warploom.core.bench import Peer, Work

from .inputs import (
    FEW,
    MANY,
    TEMPERATURE,
    benchmark,
    make_logits,
    make_probs,
    parameters,
    read,
    read_and_write,
    target,
)
from .peers import (
    flashinfer,
    flashinfer_function,
    has_flashinfer,
    keep_by_sort,
    keep_by_topk,
    own_numbers,
    sort_is_short,
    top_k_of,
    top_p_of,
)


def make_softmax(case: SimpleNamespace, device: torch.device) -> Work:
    work = make_logits(case, device)
    work.temperature = torch.full((case.batch,), TEMPERATURE, device=device)
    work.out = torch.empty(case.batch, case.vocab, device=device)
    return work


SOFTMAX = benchmark(
    "softmax",
    lambda work, **options: sampling.softmax(work.logits, work.temperature, **options),
    cases=MANY,
    make=make_softmax,
    peers=[
        # torch.softmax has no temperature; dividing first is the second peer.
        Peer(
            "torch.softmax, no temperature",
            lambda work: torch.softmax(work.logits, dim=-1, dtype=torch.float32),
            verified=False,
        ),
        Peer("torch", lambda work: torch.softmax(work.logits / work.temperature.unsqueeze(1), -1, torch.float32)),
        Peer("flashinfer", lambda work: flashinfer().softmax(work.logits, work.temperature), has_flashinfer),
    ],
    bytes=read_and_write,
    target=target({1: 10, 64: 22, 512: 140}),
)


def make_renorm(case: SimpleNamespace, device: torch.device) -> Work:
    work = make_probs(case, device)
    work.out = torch.empty_like(work.probs)
    return work


def make_mask(case: SimpleNamespace, device: torch.device) -> Work:
    work = make_logits(case, device)
    work.out = torch.empty_like(work.logits)
    return work


def make_top_k(case: SimpleNamespace, device: torch.device) -> Work:
    work = make_logits(case, device)
    indices = torch.empty(case.batch, work.top_k, dtype=torch.int64, device=device)
    work.out = (torch.empty(case.batch, work.top_k, dtype=work.logits.dtype, device=device), indices)
    return work


TOP_P_RENORM = benchmark(
    "top_p_renorm_probs",
    lambda work, **options: sampling.top_p_renorm_probs(work.probs, work.top_p, **options),
    cases=FEW,
    make=make_renorm,
    operator="renorm",
    peers=[
        # Sums in float32 cut elsewhere by some tokens.
        own_numbers("torch sort", lambda work: keep_by_sort(work.probs, 0, work.top_p), sort_is_short),
        flashinfer_function("top_p_renorm_probs", top_p_of, verified=False),
    ],
    bytes=read_and_write,
    target=target({64: 45, 512: 250}),
)

TOP_K_RENORM = benchmark(
    "top_k_renorm_probs",
    lambda work, **options: sampling.top_k_renorm_probs(work.probs, work.top_k, **options),
    cases=FEW,
    make=make_renorm,
    operator="renorm",
    peers=[
        Peer("torch.topk", lambda work: keep_by_topk(work.probs, work.top_k)),
        flashinfer_function("top_k_renorm_probs", top_k_of),
    ],
    bytes=read_and_write,
)


def mask_by_topk(work: Any) -> torch.Tensor:
    return work.logits.masked_fill(work.logits < torch.topk(work.logits, work.top_k).values[:, -1:], -torch.inf)


TOP_K_MASK = benchmark(
    "top_k_mask_logits",
    lambda work, **options: sampling.top_k_mask_logits(work.logits, work.top_k, **options),
    cases=FEW,
    make=make_mask,
    peers=[Peer("torch.topk", mask_by_topk), flashinfer_function("top_k_mask_logits", top_k_of)],
    bytes=read_and_write,
)

TOP_K = benchmark(
    "top_k",
    lambda work, **options: sampling.top_k(work.logits, work.top_k, sorted=True, **options)[:1],
    cases=MANY + parameters(batch=[1, 64, 512], top_k=[2048]),
    make=make_top_k,
    peers=[
        Peer("torch.topk", lambda work: torch.topk(work.logits, work.top_k, out=work.out)[:1]),
        Peer(
            "flashinfer",
            lambda work: flashinfer("topk").top_k(work.logits, work.top_k, sorted=True)[:1],
            has_flashinfer,
        ),
    ],
    bytes=read,
    target=target({64: 25, 512: 110}),
)

BENCHMARKS = [SOFTMAX, TOP_P_RENORM, TOP_K_RENORM, TOP_K_MASK, TOP_K]
