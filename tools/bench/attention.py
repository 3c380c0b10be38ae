"""Attention: batched decode, prefill, mixed steps, shared prefixes, and every variant; plans are made beforehand."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from warploom import attention
from warploom.attention.variants import BUILTIN_VARIANTS
from warploom.core.bench import Benchmark, Peer, Target, Work
from warploom.core.testing import indptr_of, relative_error

BF16, E4M3 = torch.bfloat16, torch.float8_e4m3fn
# Weights that are rounded to the dtype of the second product leave this much of a result's norm.
LARGEST_ERROR = {BF16: 1e-2, E4M3: 6e-2}


# --- Requests ---


def requests(
    lengths: Sequence[tuple[int, int]],
    device: torch.device,
    *,
    heads: tuple[int, int] = (32, 8),
    dim: int = 128,
    page_size: int = 16,
    dtype: torch.dtype = BF16,
    dtype_kv: torch.dtype = BF16,
    causal: bool = True,
) -> Work:
    """Requests of so many (queries, keys) each: a paged cache with shuffled pages, or ragged rows if `page_size` is 0."""
    qo_lens, kv_lens = [m for m, _ in lengths], [n for _, n in lengths]
    work = Work(lengths=lengths, heads=heads, dim=dim, page_size=page_size, causal=causal, plans={}, variant={})
    work.q = normal((sum(qo_lens), heads[0], dim), dtype, device)
    work.qo_indptr = indptr_of(qo_lens, device)
    work.out = torch.empty(sum(qo_lens), heads[0], dim, dtype=BF16, device=device)
    if page_size:
        counts = [-(-n // page_size) for n in kv_lens]
        work.k, work.v = (normal((sum(counts), page_size, heads[1], dim), dtype_kv, device) for _ in "kv")
        work.pages = torch.randperm(sum(counts)).int().to(device)
        work.page_indptr = indptr_of(counts, device)
        work.last_page_len = torch.tensor(
            [n - (count - 1) * page_size if count else 0 for n, count in zip(kv_lens, counts, strict=True)],
            dtype=torch.int32, device=device,
        )  # fmt: skip
    else:
        work.k, work.v = (normal((sum(kv_lens), heads[1], dim), dtype_kv, device) for _ in "kv")
        work.kv_indptr = indptr_of(kv_lens, device)
    work.kv_lens = torch.tensor(kv_lens, dtype=torch.int32, device=device)
    return work


def normal(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.randn(shape, dtype=BF16, device=device).to(dtype)


def visible_pairs(work: Any) -> int:
    """Query-key pairs that a head has to compute."""
    hidden = sum(m * (m - 1) // 2 for m, _ in work.lengths) if work.causal else 0
    return sum(m * n for m, n in work.lengths) - hidden


def flops(work: Any) -> float:
    return 4.0 * work.heads[0] * work.dim * visible_pairs(work)


def moved(work: Any) -> float:
    """Every query, key, value and output once."""
    keys = sum(n for _, n in work.lengths) * work.heads[1] * work.dim
    return float(2 * keys * work.k.dtype.itemsize + work.q.nbytes + work.out.nbytes)


def close(work: Any, actual: torch.Tensor, expected: torch.Tensor) -> None:
    error = relative_error(actual, expected)
    if not error <= LARGEST_ERROR[work.q.dtype]:
        raise AssertionError(f"relative error {error:.3g}, allowed {LARGEST_ERROR[work.q.dtype]:.3g}")


# --- Ours ---


def once(work: Any, name: str, make: Callable[[], Any]) -> Any:
    """The plan of that name, made at the first call."""
    if name not in work.plans:
        work.plans[name] = make()
    return work.plans[name]


def plan_decode(work: Any, backend: str) -> Any:
    decode = attention.BatchDecodeWithPagedKVCacheWrapper(backend=backend)
    decode.plan(
        work.page_indptr, work.pages, work.last_page_len, *work.heads, work.dim, work.page_size,
        q_data_type=work.q.dtype, kv_data_type=work.k.dtype,
    )  # fmt: skip
    return decode


def plan_prefill(work: Any, backend: str) -> Any:
    types = {"q_data_type": work.q.dtype, "kv_data_type": work.k.dtype, "o_data_type": BF16, "causal": work.causal}
    if not work.page_size:
        ragged = attention.BatchPrefillWithRaggedKVCacheWrapper(backend=backend)
        ragged.plan(work.qo_indptr, work.kv_indptr, *work.heads, work.dim, **types)
        return ragged
    paged = attention.BatchPrefillWithPagedKVCacheWrapper(backend=backend)
    table = work.page_indptr, work.pages, work.last_page_len
    paged.plan(work.qo_indptr, *table, *work.heads, work.dim, work.page_size, **types)
    return paged


def plan_step(work: Any, backend: str) -> Any:
    step = attention.BatchAttention(backend=backend)
    table = work.qo_indptr, work.page_indptr, work.pages, work.kv_lens
    step.plan(*table, *work.heads, work.dim, work.dim, work.page_size,
              **{"causal": work.causal, "q_data_type": work.q.dtype, "kv_data_type": work.k.dtype, **work.variant})  # fmt: skip
    return step


def run_decode(work: Any, backend: str) -> torch.Tensor:
    return once(work, backend, lambda: plan_decode(work, backend)).run(work.q, (work.k, work.v), out=work.out)


def run_prefill(work: Any, backend: str) -> torch.Tensor:
    planned = once(work, backend, lambda: plan_prefill(work, backend))
    if not work.page_size:
        return planned.run(work.q, work.k, work.v, out=work.out)
    return planned.run(work.q, (work.k, work.v), out=work.out)


def run_step(work: Any, backend: str) -> torch.Tensor:
    return once(work, backend, lambda: plan_step(work, backend)).run(work.q, (work.k, work.v), out=work.out)[0]


def reference(work: Any) -> torch.Tensor:
    return (run_step if work.page_size else run_prefill)(work, "reference").clone()


# --- Peers ---


def flashinfer_is_there(work: Any) -> str:
    if not importlib.util.find_spec("flashinfer"):
        return "flashinfer is not installed"
    return "" if work.q.dtype == BF16 else "not measured with fp8 queries"


def flashinfer_plan(work: Any, wrapper: str) -> Any:
    import flashinfer

    scratch = torch.empty(512 << 20, dtype=torch.uint8, device=work.q.device)
    types = {"q_data_type": work.q.dtype, "kv_data_type": work.k.dtype}
    if wrapper == "decode":
        decode = flashinfer.BatchDecodeWithPagedKVCacheWrapper(scratch, use_tensor_cores=True)
        decode.plan(work.page_indptr, work.pages, work.last_page_len, *work.heads, work.dim, work.page_size, **types)
        return lambda: decode.run(work.q, (work.k, work.v), out=work.out)
    if wrapper == "step":
        step = flashinfer.BatchAttention()
        table = work.qo_indptr, work.page_indptr, work.pages, work.kv_lens
        step.plan(*table, *work.heads, work.dim, work.dim, work.page_size, causal=work.causal, **types)
        return lambda: step.run(work.q, (work.k, work.v), out=work.out)[0]
    if work.page_size:
        paged = flashinfer.BatchPrefillWithPagedKVCacheWrapper(scratch)
        table = work.page_indptr, work.pages, work.last_page_len
        paged.plan(work.qo_indptr, *table, *work.heads, work.dim, work.page_size, causal=work.causal, **types)
        return lambda: paged.run(work.q, (work.k, work.v), out=work.out)
    ragged = flashinfer.BatchPrefillWithRaggedKVCacheWrapper(scratch)
    ragged.plan(work.qo_indptr, work.kv_indptr, *work.heads, work.dim, causal=work.causal, **types)
    return lambda: ragged.run(work.q, work.k, work.v, out=work.out)


def flashinfer(wrapper: str) -> Peer:
    def run(work: Any) -> Any:
        return once(work, f"flashinfer {wrapper}", lambda: flashinfer_plan(work, wrapper))()

    return Peer("flashinfer", run, flashinfer_is_there)


def uniform(work: Any) -> str:
    """Torch's attention takes a dense batch; its causal mask is aligned to the top left."""
    if len(set(work.lengths)) != 1:
        return "requests of different lengths"
    m, n = work.lengths[0]
    if work.causal and m not in (1, n):
        return "torch aligns causal masks to the top left"
    return "" if work.q.dtype == work.k.dtype == BF16 else "torch's attention takes no fp8"


def dense(work: Any) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values `[batch, heads, length, dim]`, gathered beforehand: the peers get contiguous caches."""

    def gathered(cache: torch.Tensor) -> torch.Tensor:
        rows = cache[work.pages.long()].flatten(0, 1) if work.page_size else cache
        return rows.unflatten(0, (batch, -1)).transpose(1, 2)[:, :, : work.lengths[0][1]].contiguous()

    batch = len(work.lengths)
    q = work.q.unflatten(0, (batch, -1)).transpose(1, 2).contiguous()
    return q, gathered(work.k), gathered(work.v)


def torch_peer(name: str, backend: SDPBackend, available: Callable[[Any], str] = uniform) -> Peer:
    def run(work: Any) -> torch.Tensor:
        q, k, v = once(work, "dense", lambda: dense(work))
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=work.causal and q.shape[2] > 1, enable_gqa=True)

    return Peer(name, run, available, output=lambda out: out.transpose(1, 2).flatten(0, 1))


def uniform_on_a_gpu(work: Any) -> str:
    return uniform(work) if work.q.is_cuda else "cuDNN needs a GPU"


TORCH_PEERS = [
    torch_peer("torch cudnn (contiguous)", SDPBackend.CUDNN_ATTENTION, uniform_on_a_gpu),
    torch_peer("torch flash (contiguous)", SDPBackend.FLASH_ATTENTION),
]


# --- Decode ---


def decode_case(batch: int, kv: int, heads: tuple[int, int] = (32, 8), **more: Any) -> SimpleNamespace:
    return SimpleNamespace(batch=batch, kv=kv, heads=heads, **more)


def make_decode(case: SimpleNamespace, device: torch.device) -> Work:
    longest = [(1, case.longest)] if hasattr(case, "longest") else []
    lengths = [*longest, *[(1, case.kv)] * (case.batch - len(longest))]
    return requests(lengths, device, heads=case.heads, dtype_kv=getattr(case, "dtype_kv", BF16))


# Cases and what they should take on an H200, in microseconds; None for no target.
Targets = Sequence[tuple[SimpleNamespace, float | None]]


def cases_of(targets: Targets) -> list[SimpleNamespace]:
    return [case for case, _ in targets]


def target(targets: Targets) -> Target:
    return Target("NVIDIA H200", lambda case: next((us for each, us in targets if each == case), None))


DECODE_TARGETS: Targets = [
    (decode_case(1, 8192), 16),
    (decode_case(1, 131072), 128),
    (decode_case(16, 2048), 42),
    (decode_case(64, 4096), 246),
    (decode_case(64, 4096, (64, 8)), 246),
    (decode_case(128, 8192), 950),
    (decode_case(256, 1024), 250),
    (decode_case(32, 4096, (64, 8), longest=131072), 280),
    (decode_case(64, 4096, dtype_kv=E4M3), 140),
    # Neighbours of those.
    (decode_case(40, 3333), None),
    (decode_case(7, 20000, (40, 8)), None),
]
DECODE = Benchmark(
    "decode",
    operator="attention",
    cases=cases_of(DECODE_TARGETS),
    target=target(DECODE_TARGETS),
    quick=[
        decode_case(2, 40, (4, 2)),
        decode_case(3, 20, (4, 2), longest=64),
        decode_case(2, 40, (4, 2), dtype_kv=E4M3),
    ],
    make=make_decode,
    ours=run_decode,
    reference=reference,
    peers=[*TORCH_PEERS, flashinfer("decode")],
    bytes=moved,
    flops=flops,
    check=close,
)


# --- Prefill ---


def prefill_case(
    batch: int, length: int, heads: tuple[int, int] = (32, 8), dim: int = 128, **more: Any
) -> SimpleNamespace:
    return SimpleNamespace(batch=batch, length=length, heads=heads, dim=dim, **more)


def make_prefill(case: SimpleNamespace, device: torch.device) -> Work:
    dtype = getattr(case, "dtype", BF16)
    return requests(
        [(case.length, case.length)] * case.batch, device, heads=case.heads, dim=case.dim,
        page_size=getattr(case, "page_size", 0), dtype=dtype, dtype_kv=dtype,
    )  # fmt: skip


# 500, 650, 670 and 610 TFLOP/s; for other head dims torch's cuDNN is what to reach.
PREFILL_TARGETS: Targets = [
    (prefill_case(16, 1024), 275),
    (prefill_case(4, 4096), 845),
    (prefill_case(1, 16384), 3283),
    (prefill_case(4, 4096, page_size=16), 900),
    (prefill_case(1, 8192, dim=64), None),
    (prefill_case(1, 8192, dim=96), None),
    (prefill_case(1, 8192, dim=256), None),
    # Neighbours of those.
    (prefill_case(3, 5000, (40, 8), page_size=16), None),
    (prefill_case(64, 300), None),
]
PREFILL = Benchmark(
    "prefill",
    operator="attention",
    cases=cases_of(PREFILL_TARGETS),
    target=target(PREFILL_TARGETS),
    quick=[prefill_case(2, 24, (4, 2), 64), prefill_case(2, 24, (4, 2), 64, page_size=16)],
    make=make_prefill,
    ours=run_prefill,
    reference=reference,
    peers=[*TORCH_PEERS, flashinfer("prefill")],
    bytes=moved,
    flops=flops,
    check=close,
)
PREFILL_FP8 = Benchmark(
    "prefill_fp8",
    operator="attention",
    cases=[prefill_case(1, 8192, (64, 8), dtype=E4M3)],
    target=Target("NVIDIA H200", lambda case: 1100),
    quick=[prefill_case(1, 24, (4, 2), 64, dtype=E4M3)],
    make=make_prefill,
    ours=run_prefill,
    reference=reference,
    bytes=moved,
    flops=flops,
    math="fp8",
    check=close,
)


# --- Prefill and decode in one call ---


def make_mixed(case: SimpleNamespace, device: torch.device) -> Work:
    return requests([(case.prompt, case.prompt)] * case.prefills + [(1, case.kv)] * case.decodes, device)


MIXED = Benchmark(
    "mixed",
    operator="attention",
    cases=[SimpleNamespace(prefills=4, prompt=2048, decodes=124, kv=4096)],
    target=Target("NVIDIA H200", lambda case: 650),
    quick=[SimpleNamespace(prefills=1, prompt=20, decodes=3, kv=33)],
    make=make_mixed,
    ours=run_step,
    reference=reference,
    peers=[flashinfer("step")],
    bytes=moved,
    flops=flops,
    check=close,
)


# --- Shared prefix ---


def make_cascade(case: SimpleNamespace, device: torch.device) -> Work:
    """The prefix's pages stand in every request's page table, and once in level 0 of the cascade's."""
    work = requests([(1, case.shared + case.unique)] * case.batch, device)
    size = work.page_size
    shared, unique = case.shared // size, case.unique // size  # multiples of the page size
    table = work.pages.view(case.batch, shared + unique)
    table[:, :shared] = table[0, :shared].clone()
    levels = (shared, 1), (unique, case.batch)
    rows = indptr_of([case.batch], device), work.qo_indptr
    indptrs = [indptr_of([pages] * groups, device) for pages, groups in levels]
    indices = table[0, :shared].contiguous(), table[:, shared:].reshape(-1)
    lasts = [torch.full((groups,), size, dtype=torch.int32, device=device) for _, groups in levels]
    work.levels = rows, indptrs, indices, lasts
    return work


def plan_cascade(work: Any, backend: str) -> Any:
    cascade = attention.MultiLevelCascadeAttentionWrapper(2, backend=backend)
    cascade.plan(*work.levels, *work.heads, work.dim, work.page_size, q_data_type=BF16)
    return cascade


def run_cascade(work: Any, backend: str) -> torch.Tensor:
    cascade = once(work, f"cascade {backend}", lambda: plan_cascade(work, backend))
    return cascade.run(work.q, (work.k, work.v), out=work.out)


def cascade_bytes(work: Any) -> float:
    keys = work.case.shared + work.case.unique * work.case.batch
    return float(2 * keys * work.heads[1] * work.dim * work.k.dtype.itemsize + work.q.nbytes + work.out.nbytes)


CASCADE = Benchmark(
    "cascade",
    operator="attention",
    cases=[SimpleNamespace(shared=32768, batch=256, unique=256)],
    target=Target("NVIDIA H200", lambda case: 340),
    quick=[SimpleNamespace(shared=64, batch=3, unique=16)],
    make=make_cascade,
    ours=run_cascade,
    reference=reference,
    peers=[
        Peer("ours without the cascade", lambda work: run_decode(work, "auto")),
        flashinfer("decode"),
    ],
    bytes=cascade_bytes,
    flops=flops,
    check=close,
)


# --- Variants ---


def make_variant(case: SimpleNamespace, device: torch.device) -> Work:
    lengths = [(case.length, case.length)]
    work = requests(lengths, device, heads=case.heads, causal=False)
    (variant,) = (each for each in BUILTIN_VARIANTS if each.name == case.variant)
    work.variant = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in variant.example(case.heads[0], [case.length], [case.length]).items()
    }
    work.causal = work.variant.get("causal", False)
    return work


def variant_cases(length: int, heads: tuple[int, int]) -> list[SimpleNamespace]:
    return [SimpleNamespace(variant=each.name, length=length, heads=heads) for each in BUILTIN_VARIANTS]


VARIANTS = Benchmark(
    "attention_variants",
    operator="attention",
    cases=variant_cases(4096, (32, 8)),
    quick=variant_cases(40, (4, 2)),
    make=make_variant,
    ours=run_step,
    reference=reference,
    bytes=moved,
    flops=flops,
    check=close,
)

BENCHMARKS = [DECODE, PREFILL, PREFILL_FP8, MIXED, CASCADE, VARIANTS]
