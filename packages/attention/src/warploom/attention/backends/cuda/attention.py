"""Attention by the kernels of `attention.cuh`: any mix of decodes, appends and prefills in one launch."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from warploom.attention.backends.cuda.alignment import is_aligned
from warploom.attention.backends.cuda.attention_kernel import (
    THREADS,
    AttentionParams,
    KernelShape,
    attention_spec,
    kernel_shape,
)
from warploom.attention.backends.cuda.schedule import START_INTS, launch_schedule, work_shape
from warploom.attention.backends.cuda.variant_source import (
    MAX_ARGUMENTS,
    compiled_variants,
    variant_arguments,
    variant_source,
)
from warploom.attention.options import FP8_DTYPES
from warploom.attention.plan import AttentionBackend, AttentionCall, AttentionPlan
from warploom.attention.problems.attention import AttentionProblem
from warploom.attention.schedule import NARROW_ROWS, WIDE_ROWS, WorkSchedule, WorkShape
from warploom.attention.variants.base import AttentionVariant
from warploom.core.backends import Support
from warploom.core.jit import KernelSpec, divisor_fields
from warploom.core.workspace import WorkspaceLayout

__all__ = ["CudaAttention"]

_DTYPES = (torch.float16, torch.bfloat16)
_OUTPUTS = (*_DTYPES, torch.float32)


class PlannedLaunch(NamedTuple):
    """What a plan prepares."""

    spec: KernelSpec
    shape: KernelShape
    work: WorkShape
    variants: tuple[AttentionVariant, ...]


def _shape(problem: AttentionProblem, has_wide: bool) -> KernelShape:
    dims = problem.head_dim_qk, problem.head_dim_vo
    return kernel_shape(*dims, problem.dtype_kv.itemsize, has_wide, problem.arch)


def _has_wide_tiles(problem: AttentionProblem, longest: int | None) -> bool:
    """Whether requests may have more than 16 rows, and a warp has the registers for 16 of its own."""
    return problem.head_dim_vo <= 128 and (longest is None or longest * problem.group_size > NARROW_ROWS)


class CudaAttention(AttentionBackend):
    """Tensor cores through `mma.sync`, keys and values through `cp.async`: every GPU from sm_80 on."""

    name = "cuda"
    needs_gpu = True
    min_arch = 80

    def supports(self, problem: AttentionProblem) -> Support:
        stages, is_fp8 = _shape(problem, False).stages, problem.dtype_kv in FP8_DTYPES
        return Support.of(
            (problem.dtype_q in _DTYPES, f"takes float16 and bfloat16 queries, not {problem.dtype_q}"),
            (
                problem.dtype_kv == problem.dtype_q or is_fp8,
                f"keys and values must be {problem.dtype_q} or fp8, not {problem.dtype_kv}",
            ),
            (
                not is_fp8 or (problem.head_dim_qk % 16 == 0 and problem.head_dim_vo % 16 == 0),
                "head dims of fp8 keys and values must be multiples of 16, which is what is copied at once",
            ),
            (problem.dtype_o in _OUTPUTS, f"writes float16, bfloat16 and float32, not {problem.dtype_o}"),
            (problem.pos_encoding != "ROPE_LLAMA", "does not rotate queries and keys on the fly"),
            (stages >= 2, f"sm_{problem.arch} has not the shared memory for heads of {problem.head_dim_qk}"),
        )

    def note(self, problem: AttentionProblem) -> str:
        return "one launch of persistent blocks, each with the same number of key tiles"

    def workspace_layout(self, problem: AttentionProblem) -> WorkspaceLayout:
        blocks = problem.sm_count * max(_shape(problem, has_wide).blocks_per_sm for has_wide in (False, True))
        return (
            WorkspaceLayout("attention")
            .add("starts", (blocks, START_INTS), torch.int32)
            .add("arrivals", blocks, torch.int32)
            .add("partial_lse", (blocks, 2, WIDE_ROWS), torch.float32)
            .add("partial_out", (blocks, 2, WIDE_ROWS, problem.head_dim_vo), torch.float32)
        )

    def schedule(self, plan: AttentionPlan) -> PlannedLaunch:
        problem = plan.problem
        has_wide = _has_wide_tiles(problem, plan.tables.max_qo_len)
        variants = compiled_variants(problem, plan.options.variant)
        source = variant_source(variants)
        shape = _shape(problem, has_wide)
        spec = attention_spec(
            problem.dtype_q, problem.dtype_kv, problem.dtype_o, problem.head_dim_qk, problem.head_dim_vo, has_wide, shape,
            source,
        )  # fmt: skip
        work = work_shape(plan, problem.sm_count * shape.blocks_per_sm, has_wide)
        plan.workspace["arrivals"].zero_()
        if not problem.cuda_graph:
            launch_schedule(plan, work)
        return PlannedLaunch(spec, shape, work, variants)

    def divided_work(self, plan: AttentionPlan) -> WorkSchedule:
        host = plan.tables.on_host()
        return WorkSchedule.of(host.qo_lens, host.kv_lens, plan.schedule.work)

    def run(self, problem: AttentionProblem, plan: AttentionPlan, call: AttentionCall) -> None:  # type: ignore[override]
        if call.q.shape[0] == 0 or plan.tables.batch == 0:
            call.out.zero_()
            if call.lse is not None:
                call.lse.fill_(-torch.inf)
            return
        launch: PlannedLaunch = plan.schedule
        if problem.cuda_graph:
            launch_schedule(plan, launch.work)  # a replay plans for what the tables hold then
        q, k, v = (_aligned(x, n) for x, n in ((call.q, 4), (call.k, 16), (call.v, 16)))
        width = 4 * call.out.element_size()
        out = (
            call.out
            if is_aligned(call.out, width)
            else torch.empty(call.out.shape, dtype=call.out.dtype, device=call.out.device)
        )
        params = _params(plan, launch, call, q, k, v, out)
        kernel = launch.spec.load(call.q.device)
        kernel.launch(launch.work.groups * launch.work.lanes, THREADS, params, smem=launch.shape.smem)
        if out is not call.out:
            call.out.copy_(out)


def _aligned(tensor: torch.Tensor, nbytes: int) -> torch.Tensor:
    """The tensor, or a copy where its rows are not aligned to so many bytes or their elements lie apart."""
    return tensor if is_aligned(tensor, nbytes) else tensor.clone(memory_format=torch.contiguous_format)


def _padded(values: list[Any], fill: float | None) -> list[Any]:
    return values + [fill] * (MAX_ARGUMENTS - len(values))


def _params(
    plan: AttentionPlan,
    launch: PlannedLaunch,
    call: AttentionCall,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
) -> AttentionParams:
    tables, problem, options = plan.tables, plan.problem, plan.options
    extra = variant_arguments(launch.variants, plan, call)
    sinks = None if call.sinks is None else call.sinks.float().contiguous()
    return AttentionParams(
        q=q, k=k, v=v, out=out, lse=call.lse,
        qo_indptr=tables.qo_indptr, kv_lens=tables.kv_lens, kv_starts=tables.kv_starts, pages=tables.page_indices,
        **{name: plan.workspace[name] for name in ("starts", "partial_out", "partial_lse", "arrivals")},
        logits_scales=call.logits_scales, value_scales=call.value_scales, sinks=sinks, mask_indptr=tables.mask_indptr,
        tensors=_padded(extra.tensors, None), integers=_padded(extra.integers, 0), numbers=_padded(extra.numbers, 0.0),
        q_stride=q.stride()[:2], out_stride=out.stride()[:2],
        k_stride=_row_strides(k), v_stride=_row_strides(v),
        lse_stride=(0, 0) if call.lse is None else call.lse.stride(),
        logits_scale=options.sm_scale * call.logits_scale, value_scale=call.value_scale,
        lse_unit=options.lse_unit * math.log(2.0),
        group_size=divisor_fields(problem.group_size), page_size=divisor_fields(max(tables.page_size, 1)),
        batch=tables.batch, q_rows=q.shape[0], num_kv_heads=problem.num_kv_heads,
        lanes=launch.work.lanes, has_wide=launch.work.has_wide,
        causal=problem.causal, window_left=options.window_left,
        logits_scales_step=_step(call.logits_scales), value_scales_step=_step(call.value_scales),
    )  # fmt: skip


def _row_strides(tensor: torch.Tensor) -> tuple[int, ...]:
    """Page, row and head of keys or values; rows that are not in pages have one page."""
    strides = tensor.stride()[:-1]
    return strides if len(strides) == 3 else (0, *strides)


def _step(scales: torch.Tensor | None) -> int:
    return 0 if scales is None or scales.numel() == 1 else 1
