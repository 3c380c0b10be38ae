"""Host time of planning and running attention: what Python and the driver take before the GPU can start."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from warploom import attention
from warploom.core.bench import host_time_us
from warploom.core.bench.report import Table
from warploom.core.testing import indptr_of

HEADS, KV_HEADS, DIM, PAGE_SIZE = 32, 8, 128, 16
PAGES = 4  # of each request: the kernel's time is no part of this


def tables(options: argparse.Namespace, device: torch.device) -> list[Table]:
    batches = [3] if options.quick else [1, 32, 256]
    rows = [
        [f"{name} batch {batch}", f"{host_time_us(plan, device=device):.1f}", f"{host_time_us(run, device=device):.1f}"]
        for batch in batches
        for name, plan, run in calls(batch, device)
        if options.pattern.search(name)
    ]
    where = "page tables on the GPU" if device.type == "cuda" else "on a CPU, where a call is all the work"
    return [Table(f"attention: host time, {where}", ("wrapper", "plan us", "run us"), rows)]


def calls(batch: int, device: torch.device) -> list[tuple[str, Callable[[], object], Callable[[], object]]]:
    """Name, `plan` and `run` of each wrapper for decoding one token of `batch` requests."""
    dtype = torch.bfloat16
    cache = torch.randn(batch * PAGES, 2, PAGE_SIZE, KV_HEADS, DIM, dtype=dtype, device=device)
    q = torch.randn(batch, HEADS, DIM, dtype=dtype, device=device)
    out, lse = torch.empty_like(q), torch.empty(batch, HEADS, device=device)
    qo_indptr, indptr = indptr_of([1] * batch, device), indptr_of([PAGES] * batch, device)
    pages = torch.randperm(batch * PAGES).int().to(device)
    last = torch.full((batch,), PAGE_SIZE, dtype=torch.int32, device=device)
    lengths = last * PAGES
    sizes = HEADS, KV_HEADS, DIM
    decode, step = attention.BatchDecodeWithPagedKVCacheWrapper(), attention.BatchAttention()

    def plan_decode() -> None:
        decode.plan(indptr, pages, last, *sizes, PAGE_SIZE, data_type=dtype)

    def plan_step() -> None:
        step.plan(qo_indptr, lengths, pages, *sizes, DIM, dtype_q=dtype, page_size=PAGE_SIZE, causal=True)

    plan_decode()
    plan_step()
    return [
        ("BatchDecodeWithPagedKVCacheWrapper", plan_decode, lambda: decode.run(q, cache, out=out)),
        ("BatchAttention", plan_step, lambda: step.run(q, cache, out=out, lse=lse)),
    ]
