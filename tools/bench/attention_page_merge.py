"""Writing to the paged cache and merging attention states: both only move bytes, so a plain copy is the ceiling."""

from __future__ import annotations

import importlib.util
import math
from types import SimpleNamespace
from typing import Any

import torch

from warploom import attention
from warploom.core.bench import Benchmark, Peer, Work, grid
from warploom.core.testing import indptr_of
from warploom.core.testing.inputs import poison_like

BF16, E4M3, FP32 = torch.bfloat16, torch.float8_e4m3fn, torch.float32
PAGE_SIZE, HEADS, HEAD_DIM = 16, 8, 128
MERGE_HEADS = 32


def flashinfer_is_there(work: Any) -> str:
    return "" if importlib.util.find_spec("flashinfer") else "flashinfer is not installed"


# --- Paged-cache append ---


def make_append(case: SimpleNamespace, device: torch.device) -> Work:
    """`nnz` new tokens, spread evenly over `batch` requests whose pages are shuffled over the cache."""
    lens = [case.nnz // case.batch] * case.batch
    pages = [-(-n // PAGE_SIZE) for n in lens]
    order = torch.randperm(sum(pages) + 1)[: sum(pages)].int()
    page = (PAGE_SIZE, HEADS, HEAD_DIM) if case.layout == "NHD" else (HEADS, PAGE_SIZE, HEAD_DIM)
    cache = torch.empty(sum(pages) + 1, 2, *page, dtype=case.cache, device=device)
    lengths = torch.tensor(lens, dtype=torch.int32, device=device)
    requests, positions = attention.get_batch_indices_positions(indptr_of(lens, device), lengths, case.nnz)
    work = Work(
        key=torch.randn(case.nnz, HEADS, HEAD_DIM, device=device).to(BF16),
        value=torch.randn(case.nnz, HEADS, HEAD_DIM, device=device).to(BF16),
        where=(requests, positions),
        table=(order.to(device), indptr_of(pages, device), (lengths - 1) % PAGE_SIZE + 1),
        layout=case.layout,
        out=cache,
    )
    slot = work.table[1].long()[requests.long()] + positions.long() // PAGE_SIZE
    work.slot = work.table[0].long()[slot], positions.long() % PAGE_SIZE
    work.flat = torch.empty(2, case.nnz, HEADS, HEAD_DIM, dtype=case.cache, device=device)
    return work


def append(work: Any, cache: torch.Tensor, backend: str) -> torch.Tensor:
    arguments = work.key, work.value, *work.where, cache, *work.table, work.layout
    attention.append_paged_kv_cache(*arguments, backend=backend)
    return cache


def expected_cache(work: Any) -> torch.Tensor:
    return append(work, poison_like(work.out), "reference")


def index_put(work: Any) -> torch.Tensor:
    """With the places of the rows known beforehand, which the operator has to look up."""
    for plane, rows in ((work.out[:, 0], work.key), (work.out[:, 1], work.value)):
        target = plane if work.layout == "NHD" else plane.transpose(1, 2)
        bits = torch.uint8 if target.dtype == E4M3 else target.dtype
        target.view(bits).index_put_(work.slot, rows.to(target.dtype).view(bits))
    return work.out


def flashinfer_append(work: Any) -> torch.Tensor:
    import flashinfer

    arguments = work.key.to(work.out.dtype), work.value.to(work.out.dtype), *work.where, work.out, *work.table
    flashinfer.append_paged_kv_cache(*arguments, work.layout)
    return work.out


def copy_rows(work: Any) -> None:
    work.flat[0].copy_(work.key)
    work.flat[1].copy_(work.value)


def same_bits(work: Any, actual: torch.Tensor, expected: torch.Tensor) -> None:
    if not torch.equal(actual.view(torch.uint8), expected.view(torch.uint8)):
        raise AssertionError("the cache differs from the reference's")


def tokens(nnz: int, batch: int, layout: str = "NHD", cache: torch.dtype = BF16) -> SimpleNamespace:
    return SimpleNamespace(nnz=nnz, batch=batch, layout=layout, cache=cache)


APPEND = Benchmark(
    "append_paged_kv_cache",
    cases=[
        *(tokens(nnz, nnz) for nnz in (1, 64, 256)),
        *(tokens(nnz, 4) for nnz in (2048, 16384, 65536)),
        tokens(16384, 4, "HND"),
        tokens(256, 256, cache=E4M3),
        tokens(16384, 4, cache=E4M3),
    ],
    quick=[tokens(12, 4), tokens(12, 4, "HND", E4M3)],
    make=make_append,
    ours=lambda work, backend: append(work, work.out, backend),
    reference=expected_cache,
    peers=[
        Peer("torch.index_put", index_put),
        Peer("flashinfer", flashinfer_append, flashinfer_is_there),
        Peer("copy of the rows (ceiling)", copy_rows, verified=False),
    ],
    check=same_bits,
    bytes=lambda work: float(work.key.nbytes + work.value.nbytes + work.flat.nbytes),
)


# --- Merging states ---


def make_states(case: SimpleNamespace, device: torch.device) -> Work:
    states = getattr(case, "states", 2)
    out = torch.empty(case.rows, MERGE_HEADS, case.dim, dtype=BF16, device=device)
    return Work(
        v=torch.randn(case.rows, states, MERGE_HEADS, case.dim, device=device).to(case.dtype),
        s=torch.randn(case.rows, states, MERGE_HEADS, device=device) * 4,
        out=(out, torch.empty(case.rows, MERGE_HEADS, device=device)),
    )


def merge_states(work: Any, backend: str) -> Any:
    return attention.merge_states(work.v, work.s, out=work.out[0], lse=work.out[1], backend=backend)


def merge_state(work: Any, backend: str) -> Any:
    state = work.v[:, 0], work.s[:, 0], work.v[:, 1], work.s[:, 1]
    return attention.merge_state(*state, out=work.out[0], lse=work.out[1], backend=backend)


def torch_merge(work: Any) -> Any:
    """What a user writes: a softmax over the states and a weighted sum."""
    natural = work.s * math.log(2.0)
    weights = natural.softmax(1)
    value = torch.einsum("nmh,nmhd->nhd", weights.to(work.v.dtype), work.v)
    return work.out[0].copy_(value), work.out[1].copy_(natural.logsumexp(1) / math.log(2.0))


def flashinfer_merge(work: Any) -> Any:
    import flashinfer

    if work.v.shape[1] == 2:
        return flashinfer.merge_state(work.v[:, 0], work.s[:, 0], work.v[:, 1], work.s[:, 1])
    return flashinfer.merge_states(work.v, work.s)


def flashinfer_takes_it(work: Any) -> str:
    return flashinfer_is_there(work) or ("" if work.v.dtype == BF16 else "flashinfer's output has the input's dtype")


def merged_bytes(work: Any) -> float:
    return float(sum(tensor.nbytes for tensor in (work.v, work.s, *work.out)))


MERGE_PEERS = [Peer("torch", torch_merge), Peer("flashinfer", flashinfer_merge, flashinfer_takes_it)]


def states(rows: int, states: int, dim: int = 128, dtype: torch.dtype = FP32) -> SimpleNamespace:
    return SimpleNamespace(rows=rows, states=states, dim=dim, dtype=dtype)


MERGE_STATES = Benchmark(
    "merge_states",
    cases=[
        *(states(1, count) for count in (8, 64, 512, 4096)),
        *(states(64, count) for count in (4, 16, 128)),
        states(256, 16, dtype=BF16),
        states(4096, 4, dtype=BF16),
        states(128, 16, 512),
    ],
    quick=[states(2, 5, 64), states(2, 40, 64, BF16)],
    make=make_states,
    ours=merge_states,
    reference=lambda work: attention.merge_states(work.v, work.s, backend="reference"),
    peers=MERGE_PEERS,
    bytes=merged_bytes,
)

MERGE_STATE = Benchmark(
    "merge_state",
    cases=grid(rows=[1, 256, 4096, 32768], dim=[128], dtype=[BF16]),
    quick=grid(rows=[3], dim=[64], dtype=[BF16]),
    make=make_states,
    ours=merge_state,
    reference=lambda work: attention.merge_states(work.v, work.s, backend="reference"),
    peers=MERGE_PEERS,
    bytes=merged_bytes,
)

BENCHMARKS = [APPEND, MERGE_STATE, MERGE_STATES]
