"""Host time of planning and running attention: what Python and the driver take before the GPU can start."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from warploom import attention
from warploom.core.bench import host_time_us
from warploom.core.bench.report import Table
from warploom.core.testing import indptr_of

HEADS, KV_HEADS, DIM, PAGE_SIZE = 32, 8, 128, 16
PAGES = 4  # of each request: the kernel's time is no part of this
BATCHES = (1, 64, 256)
TARGETS = {"plan": 40, "run with out": 15, "run": 20, "first run": 60}  # microseconds, on the host of an H200


class Calls(NamedTuple):
    """A wrapper's calls for one step."""

    name: str
    plan: Callable[[], object]
    run_with_out: Callable[[], object]
    run: Callable[[], object]


def tables(options: argparse.Namespace, device: torch.device) -> list[Table]:
    rows = []
    for batch in [3] if options.quick else BATCHES:
        for calls in wrappers(batch, device):
            if options.pattern.search(calls.name):
                rows.append([f"{calls.name} batch {batch}", *(f"{us:.1f}" for us in times_us(calls, device))])
    rows.append(["target", *map(str, TARGETS.values())])
    where = "page tables on the GPU" if device.type == "cuda" else "on a CPU, where a call is all the work"
    heading = ("wrapper", *(f"{name} us" for name in TARGETS))
    return [Table(f"attention: host time, {where}", heading, rows)]


def times_us(calls: Calls, device: torch.device) -> tuple[float, ...]:
    """Of `TARGETS`; the first run after a plan is that of a step's first layer."""

    def time_us(call: Callable[[], object]) -> float:
        return host_time_us(call, device=device)

    def step() -> None:
        calls.plan()
        calls.run_with_out()

    plan = time_us(calls.plan)
    return plan, time_us(calls.run_with_out), time_us(calls.run), max(time_us(step) - plan, 0.0)


def wrappers(batch: int, device: torch.device) -> Iterator[Calls]:
    """Every wrapper with one new token for each of `batch` requests."""
    dtype = torch.bfloat16
    cache = torch.randn(batch * PAGES, 2, PAGE_SIZE, KV_HEADS, DIM, dtype=dtype, device=device)
    rows = torch.randn(batch * PAGES * PAGE_SIZE, KV_HEADS, DIM, dtype=dtype, device=device)
    q = torch.randn(batch, HEADS, DIM, dtype=dtype, device=device)
    out, lse = torch.empty_like(q), torch.empty(batch, HEADS, device=device)
    qo_indptr, indptr = indptr_of([1] * batch, device), indptr_of([PAGES] * batch, device)
    kv_indptr = indptr_of([PAGES * PAGE_SIZE] * batch, device)
    pages = torch.randperm(batch * PAGES).int().to(device)
    last = torch.full((batch,), PAGE_SIZE, dtype=torch.int32, device=device)
    lengths = last * PAGES
    sizes = HEADS, KV_HEADS, DIM

    def calls(name: str, wrapper: Any, plan: Callable[[], object], *kv: torch.Tensor, **outputs: torch.Tensor) -> Calls:
        plan()
        return Calls(name, plan, lambda: wrapper.run(q, *kv, **outputs), lambda: wrapper.run(q, *kv))

    decode, graph = (attention.BatchDecodeWithPagedKVCacheWrapper(use_cuda_graph=on) for on in (False, True))
    for name, wrapper in (("decode", decode), ("decode, graph mode", graph)):

        def plan_decode(wrapper: Any = wrapper) -> None:
            wrapper.plan(indptr, pages, last, *sizes, PAGE_SIZE, data_type=dtype)

        yield calls(name, wrapper, plan_decode, cache, out=out)
    prefill, ragged = attention.BatchPrefillWithPagedKVCacheWrapper(), attention.BatchPrefillWithRaggedKVCacheWrapper()
    options = {"causal": True, "q_data_type": dtype}
    yield calls(
        "prefill over pages",
        prefill,
        lambda: prefill.plan(qo_indptr, indptr, pages, last, *sizes, PAGE_SIZE, **options),
        cache,
        out=out,
    )
    yield calls(
        "prefill over rows", ragged, lambda: ragged.plan(qo_indptr, kv_indptr, *sizes, **options), rows, rows, out=out
    )
    for name, table in (("packed pages", pages), ("a block table", pages.view(batch, PAGES))):
        step = attention.BatchAttention()

        def plan_step(step: Any = step, table: torch.Tensor = table) -> None:
            step.plan(qo_indptr, lengths, table, *sizes, DIM, dtype_q=dtype, page_size=PAGE_SIZE, causal=True)

        yield calls(f"BatchAttention with {name}", step, plan_step, cache, out=out, lse=lse)
