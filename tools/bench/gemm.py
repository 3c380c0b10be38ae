"""Matrix products and fp8 quantisers: the GEMM rows of the goals, against torch's own entry points.

The products of this release that have only a reference are listed with their rows too, so that their peers are measured
in the same run. Shapes are examples of what serving engines call: a dense or expert layer of a large model, at prefill
and at decode sizes.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import torch

from warploom import gemm
from warploom.core.bench import Benchmark, Peer, Target, Work, grid
from warploom.core.testing import assert_close, indptr_of, random_normal

BF16, E4M3 = torch.bfloat16, torch.float8_e4m3fn


def shape(m: int, n: int, k: int) -> SimpleNamespace:
    return SimpleNamespace(m=m, n=n, k=k)


def groups(groups: int, rows: int, n: int = 4096, k: int = 7168) -> SimpleNamespace:
    return SimpleNamespace(groups=groups, rows=rows, n=n, k=k)


SMALL = [shape(4, 64, 256)]
SMALL_GROUPS = [groups(3, 4, 64, 256)]
SOME_GROUPS = [groups(8, 1), groups(32, 8), groups(32, 64, 7168, 2048), groups(16, 1000)]
DECODE = [shape(1, 28672, 4096), shape(16, 28672, 4096), shape(64, 4096, 7168), shape(128, 7168, 16384)]
PREFILL = [shape(4096, 4096, 7168), shape(4096, 7168, 2048), shape(4096, 24576, 1536)]
# Neighbours of the above, by which tables of backends are made too: a layer's tokens from a few to many.
LAYERS = [(4096, 7168), (7168, 2048), (28672, 4096), (1536, 1536)]


def neighbours(*tokens: int) -> list[SimpleNamespace]:
    return [shape(m, n, k) for n, k in LAYERS for m in tokens]


def target(*pairs: tuple[SimpleNamespace, float]) -> Target:
    """Microseconds that cases should take on an H200."""
    return Target("NVIDIA H200", lambda case: next((us for each, us in pairs if each == case), None))


def normal(*size: int, device: torch.device, dtype: torch.dtype = BF16) -> torch.Tensor:
    """Random on the device itself: the largest weights have 7.5e9 elements."""
    if device.type == "cpu":
        return random_normal(size, dtype)
    return torch.randn(size, device=device, dtype=BF16).to(dtype)


def scale(*size: int, device: torch.device) -> torch.Tensor:
    return torch.rand(size, device=device) + 0.5


def flops(work: Any) -> float:
    case = work.case
    return 2.0 * case.m * case.n * case.k


def moved(*names: str) -> Any:
    """Bytes of the named inputs and outputs of a case."""
    return lambda work: float(sum(getattr(work, name).nbytes for name in names))


def needs_gpu(work: Any) -> str:
    return "" if work.out.is_cuda else "needs a GPU"


# --- Dense ---


def make_bf16(case: SimpleNamespace, device: torch.device) -> Work:
    a, weight = normal(case.m, case.k, device=device), normal(case.n, case.k, device=device)
    return Work(a=a, b=weight.t(), out=torch.empty(case.m, case.n, dtype=BF16, device=device))


MM_BF16 = Benchmark(
    "mm_bf16",
    cases=[shape(8192, 8192, 8192), *DECODE, *PREFILL, *neighbours(8, 32, 128, 256, 512, 1024, 4095)],
    quick=SMALL,
    make=make_bf16,
    ours=lambda work, backend: gemm.mm_bf16(work.a, work.b, out=work.out, backend=backend),
    reference=lambda work: gemm.mm_bf16(work.a, work.b, backend="reference"),
    peers=[Peer("torch.mm", lambda work: torch.mm(work.a, work.b, out=work.out))],
    flops=flops,
    bytes=moved("a", "b", "out"),
)


def make_fp8(case: SimpleNamespace, device: torch.device) -> Work:
    a, weight = normal(case.m, case.k, device=device, dtype=E4M3), normal(case.n, case.k, device=device, dtype=E4M3)
    by_row = case.scales == "row"
    a_scale = scale(case.m, 1, device=device) if by_row else scale(1, 1, device=device)
    b_scale = scale(1, case.n, device=device) if by_row else scale(1, 1, device=device)
    out = torch.empty(case.m, case.n, dtype=BF16, device=device)
    return Work(a=a, b=weight.t(), a_scale=a_scale, b_scale=b_scale, out=out)


def torch_scaled_mm(work: Any) -> torch.Tensor:
    return torch._scaled_mm(work.a, work.b, work.a_scale, work.b_scale, out_dtype=BF16, out=work.out)


def with_scales(cases: list[SimpleNamespace]) -> list[SimpleNamespace]:
    return [SimpleNamespace(**vars(case), scales=scales) for scales in ("tensor", "row") for case in cases]


MM_FP8 = Benchmark(
    "mm_fp8",
    cases=with_scales([shape(8192, 8192, 8192), shape(16, 28672, 4096), *neighbours(1, 32, 128, 512, 2048)]),
    quick=with_scales(SMALL),
    make=make_fp8,
    ours=lambda work, backend: gemm.mm_fp8(work.a, work.b, work.a_scale, work.b_scale, out=work.out, backend=backend),
    reference=lambda work: gemm.mm_fp8(work.a, work.b, work.a_scale, work.b_scale, backend="reference"),
    peers=[Peer("torch._scaled_mm", torch_scaled_mm, needs_gpu)],
    flops=flops,
    bytes=moved("a", "b", "out"),
    math="fp8",
    target=target(
        *((SimpleNamespace(**vars(shape(16, 28672, 4096)), scales=scales), 31) for scales in ("tensor", "row"))
    ),
)


def make_groupwise(case: SimpleNamespace, device: torch.device) -> Work:
    a, b = normal(case.m, case.k, device=device, dtype=E4M3), normal(case.n, case.k, device=device, dtype=E4M3)
    blocks = -(-case.k // 128)
    return Work(
        a=a,
        b=b,
        a_scale=scale(blocks, case.m, device=device).t(),
        b_scale=scale(-(-case.n // 128), blocks, device=device),
        out=torch.empty(case.m, case.n, dtype=BF16, device=device),
    )


def torch_block_scaled(work: Any) -> torch.Tensor:
    return torch._scaled_mm(work.a, work.b.t(), work.a_scale, work.b_scale.t(), out_dtype=BF16, out=work.out)


def block_scales_in_torch(work: Any) -> str:
    return needs_gpu(work) or ("m must be a multiple of 4" if work.case.m % 4 else "")


GROUPWISE = Benchmark(
    "gemm_fp8_nt_groupwise",
    cases=[*PREFILL, *DECODE, *neighbours(4, 32, 128, 256, 512, 1024, 2048)],
    quick=SMALL,
    make=make_groupwise,
    ours=lambda work, backend: gemm.gemm_fp8_nt_groupwise(
        work.a, work.b, work.a_scale, work.b_scale, out=work.out, backend=backend
    ),
    reference=lambda work: gemm.gemm_fp8_nt_groupwise(work.a, work.b, work.a_scale, work.b_scale, backend="reference"),
    peers=[Peer("torch._scaled_mm", torch_block_scaled, block_scales_in_torch)],
    flops=flops,
    bytes=moved("a", "b", "out"),
    math="fp8",
    target=target(*zip((*PREFILL, *DECODE), (178, 96, 258, 32, 32, 13, 38), strict=True)),
)


# --- Grouped ---


def grouped_flops(work: Any) -> float:
    case = work.case
    return 2.0 * case.groups * case.rows * case.n * case.k


def make_groups(case: SimpleNamespace, device: torch.device) -> Work:
    rows = case.groups * case.rows
    a, b = normal(rows, case.k, device=device), normal(case.groups, case.n, case.k, device=device)
    out = torch.empty(rows, case.n, dtype=BF16, device=device)
    return Work(a=a, b=b, indptr=indptr_of([case.rows] * case.groups, device), out=out)


GROUPED_BF16 = Benchmark(
    "grouped_mm_bf16",
    cases=[groups(256, 16), groups(64, 256), groups(8, 4096), *SOME_GROUPS],
    quick=SMALL_GROUPS,
    make=make_groups,
    ours=lambda work, backend: gemm.grouped_mm_bf16(work.a, work.b, work.indptr, backend=backend),
    reference=lambda work: gemm.grouped_mm_bf16(work.a, work.b, work.indptr, backend="reference"),
    peers=[
        Peer("torch._grouped_mm", lambda work: torch._grouped_mm(work.a, work.b.mT, offs=work.indptr[1:]), needs_gpu)
    ],
    flops=grouped_flops,
    bytes=moved("a", "b", "out"),
    target=target((groups(256, 16), 3750), (groups(64, 256), 1350)),
)


def make_fp8_groups(case: SimpleNamespace, device: torch.device) -> Work:
    """Block scales, and scales of rows for the peer that has no others."""
    rows, blocks = case.groups * case.rows, -(-case.k // 128)
    return Work(
        a=normal(rows, case.k, device=device, dtype=E4M3),
        b=normal(case.groups, case.n, case.k, device=device, dtype=E4M3),
        indptr=indptr_of([case.rows] * case.groups, device),
        a_scale=scale(blocks, rows, device=device),
        b_scale=scale(case.groups, blocks, -(-case.n // 128), device=device),
        a_rows=scale(rows, device=device),
        b_rows=scale(case.groups, case.n, device=device),
        out=torch.empty(rows, case.n, dtype=BF16, device=device),
    )


def torch_scaled_grouped_mm(work: Any) -> torch.Tensor:
    return torch._scaled_grouped_mm(work.a, work.b.mT, work.a_rows, work.b_rows, offs=work.indptr[1:], out_dtype=BF16)


FP8_GROUPS = [groups(8, 4096), groups(64, 256), groups(256, 16), *SOME_GROUPS]
GROUPED_FP8 = Benchmark(
    "grouped_mm_fp8",
    cases=FP8_GROUPS,
    quick=SMALL_GROUPS,
    make=make_fp8_groups,
    ours=lambda work, backend: gemm.grouped_mm_fp8(
        work.a, work.b, work.indptr, a_scale=work.a_rows, b_scale=work.b_rows, backend=backend
    ),
    reference=lambda work: gemm.grouped_mm_fp8(
        work.a, work.b, work.indptr, a_scale=work.a_rows, b_scale=work.b_rows, backend="reference"
    ),
    peers=[Peer("torch._scaled_grouped_mm", torch_scaled_grouped_mm, needs_gpu)],
    flops=grouped_flops,
    bytes=moved("a", "b", "out"),
    math="fp8",
)

GROUPED_GROUPWISE = Benchmark(
    "group_gemm_fp8_nt_groupwise",
    cases=FP8_GROUPS,
    quick=SMALL_GROUPS,
    make=make_fp8_groups,
    ours=lambda work, backend: gemm.group_gemm_fp8_nt_groupwise(
        work.a, work.b, work.a_scale, work.b_scale, work.indptr, out=work.out, backend=backend
    ),
    reference=lambda work: gemm.group_gemm_fp8_nt_groupwise(
        work.a, work.b, work.a_scale, work.b_scale, work.indptr, backend="reference"
    ),
    peers=[Peer("torch._scaled_grouped_mm (row scales)", torch_scaled_grouped_mm, needs_gpu, verified=False)],
    flops=grouped_flops,
    bytes=moved("a", "b", "out"),
    math="fp8",
    target=target((groups(8, 4096), 1457), (groups(64, 256), 850)),
)


TOP_K = 4  # groups that each token is in


def make_gathered(case: SimpleNamespace, device: torch.device) -> Work:
    """Rows of groups are tokens in a random order, as a mixture's router deals them out."""
    work = make_fp8_groups(case, device)
    rows = case.groups * case.rows
    tokens, generator = max(1, rows // TOP_K), torch.Generator().manual_seed(0)
    work.indices = (torch.randperm(rows, generator=generator) % tokens).to(device, torch.int32)
    work.a = work.a[:tokens].clone()
    work.a_scale, work.a_rows = work.a_scale[:, :tokens].contiguous(), work.a_rows[:tokens].clone()
    return work


def gathered(work: Any, backend: str, out: torch.Tensor | None) -> torch.Tensor:
    arguments = work.a, work.b, work.a_scale, work.b_scale, work.indptr
    return gemm.group_gemm_fp8_nt_groupwise(*arguments, out=out, row_indices=work.indices, backend=backend)


def torch_gathered(work: Any) -> torch.Tensor:
    a = work.a.view(torch.uint8).index_select(0, work.indices).view(E4M3)
    scales = work.a_rows.index_select(0, work.indices), work.b_rows
    return torch._scaled_grouped_mm(a, work.b.mT, *scales, offs=work.indptr[1:], out_dtype=BF16)


GATHERED = Benchmark(
    "group_gemm_fp8_nt_groupwise_gathered",
    cases=[groups(8, 4096), groups(64, 256), groups(256, 16), groups(32, 64, 7168, 2048)],
    quick=SMALL_GROUPS,
    make=make_gathered,
    ours=lambda work, backend: gathered(work, backend, work.out),
    reference=lambda work: gathered(work, "reference", None),
    peers=[Peer("index_select, torch._scaled_grouped_mm (row scales)", torch_gathered, needs_gpu, verified=False)],
    flops=grouped_flops,
    bytes=moved("a", "b", "out"),
    math="fp8",
    operator="group_gemm_fp8_nt_groupwise",
)


def make_masked(case: SimpleNamespace, device: torch.device) -> Work:
    """All rows count, so that the outputs can be compared whole."""
    work = make_fp8_groups(case, device)
    count, rows, blocks = case.groups, case.rows, -(-case.k // 128)
    work.a = work.a.view(count, rows, case.k)
    work.a_scale = scale(count, blocks, rows, device=device).mT
    work.b_scale = work.b_scale.mT
    work.masked = torch.full((count,), rows, dtype=torch.int32, device=device)
    work.out = work.out.view(count, rows, case.n)
    return work


def masked(work: Any, backend: str, out: torch.Tensor | None) -> torch.Tensor:
    arguments = work.a, work.b, work.a_scale, work.b_scale, work.masked, work.case.rows
    return gemm.batch_gemm_fp8_nt_groupwise_masked(*arguments, out=out, backend=backend)


MASKED = Benchmark(
    "batch_gemm_fp8_nt_groupwise_masked",
    cases=[groups(256, 16), groups(32, 4), groups(32, 64), groups(16, 128, 7168, 2048)],
    quick=SMALL_GROUPS,
    make=make_masked,
    ours=lambda work, backend: masked(work, backend, work.out),
    reference=lambda work: masked(work, "reference", None),
    flops=grouped_flops,
    bytes=moved("a", "b", "out"),
    math="fp8",
    target=target((groups(256, 16), 1850)),
)


# --- LoRA ---


def make_segments(case: SimpleNamespace, device: torch.device) -> Work:
    """Every adapter has as many tokens; the weights are chosen in a shuffled order."""
    order = torch.randperm(case.adapters, generator=torch.Generator().manual_seed(0))
    return Work(
        x=normal(case.tokens, case.d_in, device=device),
        weights=normal(case.adapters, case.d_out, case.d_in, device=device),
        indptr=indptr_of([case.tokens // case.adapters] * case.adapters, device),
        indices=order.to(device, torch.int32),
        order=order.tolist(),
        out=torch.empty(case.tokens, case.d_out, dtype=BF16, device=device),
    )


def segments(work: Any, backend: str, out: torch.Tensor | None) -> torch.Tensor:
    wrapper = gemm.SegmentGEMMWrapper(backend=backend)
    return wrapper.run(
        work.x, work.weights, len(work.order), True, out=out, seg_indptr=work.indptr, weight_indices=work.indices
    )


def adapter_loop(work: Any) -> torch.Tensor:
    """One product for each adapter, with lengths that the host knows."""
    rows = work.x.shape[0] // len(work.order)
    for i, index in enumerate(work.order):
        part = slice(i * rows, (i + 1) * rows)
        torch.mm(work.x[part], work.weights[index].t(), out=work.out[part])
    return work.out


def lora(adapters: int, tokens: int, d_in: int, d_out: int) -> SimpleNamespace:
    return SimpleNamespace(adapters=adapters, tokens=tokens, d_in=d_in, d_out=d_out)


SEGMENT = Benchmark(
    "segment_gemm",
    cases=[lora(64, 256, d_in, d_out) for rank in (16, 64) for d_in, d_out in ((4096, rank), (rank, 4096))],
    quick=[lora(4, 8, 64, 16)],
    make=make_segments,
    ours=lambda work, backend: segments(work, backend, None),
    reference=lambda work: segments(work, "reference", None),
    peers=[Peer("torch.mm for each adapter", adapter_loop)],
    flops=lambda work: 2.0 * work.case.tokens * work.case.d_in * work.case.d_out,
    bytes=moved("x", "weights", "out"),
)


# --- Quantisers ---


def quantise_blocks(x: torch.Tensor, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What an engine writes in torch; rows and columns are multiples of the block."""
    blocks = x.view(x.shape[0] // rows, rows, x.shape[1] // columns, columns).float()
    amax = blocks.abs().amax(dim=(1, 3), keepdim=True).clamp(min=1e-10)
    q = (blocks * (448.0 / amax)).clamp(-448.0, 448.0).to(E4M3)
    return q.view_as(x), (amax / 448.0).view(amax.shape[0], amax.shape[2])


@functools.cache
def compiled(rows: int, columns: int) -> Any:
    return torch.compile(lambda x: quantise_blocks(x, rows, columns), fullgraph=True, dynamic=False)


def quantiser_peers(rows: int, columns: int) -> list[Peer]:
    return [
        Peer("torch eager", lambda work: quantise_blocks(work.x, rows, columns)),
        Peer("torch.compile", lambda work: compiled(rows, columns)(work.x), needs_gpu),
    ]


def make_quantise(case: SimpleNamespace, device: torch.device) -> Work:
    x = normal(case.m, case.k, device=device)
    return Work(x=x, out=torch.empty(x.shape, dtype=E4M3, device=device))


def token_groups(work: Any, backend: str, out: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    column_major = work.case.scales == "column"
    return gemm.per_token_group_quant_fp8(work.x, column_major_scales=column_major, out=out, backend=backend)


QUANTISE_GROUPS = Benchmark(
    "per_token_group_quant_fp8",
    cases=grid(m=[1, 128, 4096, 32768], k=[7168], scales=["row", "column"]),
    quick=grid(m=[4], k=[256], scales=["row"]),
    make=make_quantise,
    ours=lambda work, backend: token_groups(work, backend, work.out),
    reference=lambda work: token_groups(work, "reference", None),
    peers=quantiser_peers(1, 128),
    bytes=lambda work: float(work.x.nbytes + work.x.numel() + work.x.numel() // 32),
)

QUANTISE_BLOCKS = Benchmark(
    "per_block_quant_fp8",
    cases=grid(m=[4096, 28672], k=[7168]),
    quick=grid(m=[128], k=[256]),
    make=make_quantise,
    ours=lambda work, backend: gemm.per_block_quant_fp8(work.x, out=work.out, backend=backend),
    reference=lambda work: gemm.per_block_quant_fp8(work.x, backend="reference"),
    peers=quantiser_peers(128, 128),
    bytes=lambda work: float(work.x.nbytes + work.x.numel()),
)


def quantise_tensor(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    amax = x.abs().amax().float().clamp(min=1e-10)
    return (x.float() * (448.0 / amax)).clamp(-448.0, 448.0).to(E4M3), (amax / 448.0).view(1)


QUANTISE_TENSOR = Benchmark(
    "per_tensor_quant_fp8",
    cases=grid(m=[16, 4096, 32768], k=[7168]),
    quick=grid(m=[4], k=[256]),
    make=make_quantise,
    ours=lambda work, backend: gemm.per_tensor_quant_fp8(work.x, out=work.out, backend=backend),
    reference=lambda work: gemm.per_tensor_quant_fp8(work.x, backend="reference"),
    peers=[Peer("torch eager", lambda work: quantise_tensor(work.x))],
    bytes=lambda work: float(2 * work.x.nbytes + work.x.numel()),  # read twice: the scale is known after the first
)

# --- Quantisers fused with what comes before ---


def silu_quantise(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What an engine writes in torch; so many channels as groups make."""
    gate, factor = x.float().chunk(2, -1)
    y = (torch.nn.functional.silu(gate) * factor).flatten(0, -2)
    q, scales = quantise_blocks(y, 1, 128)
    return q.view(*x.shape[:-1], -1), scales.view(*x.shape[:-1], -1)


def rmsnorm_quantise(
    x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor, group: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for RMSNorm, which updates the residual."""
    residual.add_(x)
    wide = residual.float()
    y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6) * weight.float()
    return quantise_blocks(y, 1, x.shape[1] if group == -1 else group)


@functools.cache
def compiled_whole(function: Any, case: str) -> Any:
    """For one case: torch gives up on a function that it has compiled for eight shapes."""
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, dynamic=False)


def peers_of(function: Any, *names: str, note: str = "", is_exact: bool = True) -> list[Peer]:
    """A function of tensors of the work, as it is and compiled; `is_exact` if that rounds where the function does."""

    def arguments(work: Any) -> list[Any]:
        return [getattr(work, name) for name in names]

    return [
        Peer(f"torch eager{note}", lambda work: function(*arguments(work))),
        Peer(
            f"torch.compile{note}",
            lambda work: compiled_whole(function, str(work.case))(*arguments(work)),
            needs_gpu,
            verified=is_exact,
        ),
    ]


def make_silu(case: SimpleNamespace, device: torch.device) -> Work:
    return Work(x=normal(case.m, 2 * case.d, device=device), out=torch.empty(case.m, case.d, dtype=E4M3, device=device))


SILU_QUANTISE = Benchmark(
    "silu_and_mul_quant_fp8",
    cases=grid(m=[1, 128, 4096, 32768], d=[2048, 14336]),
    quick=grid(m=[4], d=[256]),
    make=make_silu,
    ours=lambda work, backend: gemm.silu_and_mul_quant_fp8(work.x, out=work.out, backend=backend),
    reference=lambda work: gemm.silu_and_mul_quant_fp8(work.x, backend="reference"),
    peers=peers_of(silu_quantise, "x"),
    bytes=lambda work: float(work.x.nbytes + work.out.numel() + work.out.numel() // 32),
)


def make_masked_silu(case: SimpleNamespace, device: torch.device) -> Work:
    """Every tensor has as many rows that count, of many more that it has room for."""
    return Work(
        x=normal(case.groups, case.max_m, 2 * case.d, device=device),
        masked=torch.full((case.groups,), case.rows, dtype=torch.int32, device=device),
        out=torch.empty(case.groups, case.max_m, case.d, dtype=E4M3, device=device),
    )


def masked_silu(work: Any, backend: str, out: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    return gemm.silu_and_mul_quant_fp8(work.x, out=out, masked_m=work.masked, backend=backend)


def compare_masked_rows(work: Any, actual: Any, expected: Any) -> None:
    for got, want in zip(actual, expected, strict=True):
        assert_close(got[:, : work.case.rows], want[:, : work.case.rows])


MASKED_SILU_QUANTISE = Benchmark(
    "silu_and_mul_quant_fp8_masked",
    cases=[
        SimpleNamespace(groups=count, max_m=max_m, rows=rows, d=2048)
        for count, max_m, rows in ((256, 128, 16), (32, 1024, 16), (32, 1024, 256), (8, 4096, 1024))
    ],
    quick=[SimpleNamespace(groups=3, max_m=8, rows=2, d=256)],
    make=make_masked_silu,
    ours=lambda work, backend: masked_silu(work, backend, work.out),
    reference=lambda work: masked_silu(work, "reference", None),
    check=compare_masked_rows,
    peers=peers_of(silu_quantise, "x", note=" (all rows)"),
    bytes=lambda work: float(work.case.groups * work.case.rows * work.case.d * (2 * 2 + 1 + 1 / 32)),
    operator="silu_and_mul_quant_fp8",
)


def make_rmsnorm(case: SimpleNamespace, device: torch.device) -> Work:
    """What is added is less than half a step of the residual, which so stays as it is however often it is updated."""
    residual = torch.rand(case.m, case.hidden, device=device) + 1
    return Work(
        x=normal(case.m, case.hidden, device=device) * 2**-12,
        weight=normal(case.hidden, device=device),
        residual=(residual * normal(case.m, case.hidden, device=device).sign()).to(BF16),
        group=case.group,
        out=torch.empty(case.m, case.hidden, dtype=E4M3, device=device),
    )


def rmsnorm(work: Any, backend: str, out: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    return gemm.rmsnorm_quant_fp8(work.x, work.weight, work.residual, group_size=work.group, out=out, backend=backend)


RMSNORM_QUANTISE = Benchmark(
    "rmsnorm_quant_fp8",
    cases=grid(m=[1, 128, 4096, 32768], hidden=[4096, 7168], group=[128, -1]),
    quick=grid(m=[4], hidden=[256], group=[128, -1]),
    make=make_rmsnorm,
    ours=lambda work, backend: rmsnorm(work, backend, work.out),
    reference=lambda work: rmsnorm(work, "reference", None),
    peers=peers_of(rmsnorm_quantise, "x", "weight", "residual", "group", is_exact=False),  # keeps the sum in float32
    bytes=lambda work: float(3 * work.x.nbytes + work.x.numel()),
)

BENCHMARKS = [
    MM_BF16,
    MM_FP8,
    GROUPWISE,
    GROUPED_BF16,
    GROUPED_FP8,
    GROUPED_GROUPWISE,
    GATHERED,
    MASKED,
    SEGMENT,
    QUANTISE_GROUPS,
    QUANTISE_BLOCKS,
    QUANTISE_TENSOR,
    SILU_QUANTISE,
    MASKED_SILU_QUANTISE,
    RMSNORM_QUANTISE,
]
