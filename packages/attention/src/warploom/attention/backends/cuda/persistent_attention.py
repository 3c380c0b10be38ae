"""What kernels of persistent blocks have in common: the workspace, the plan of their work, the parameters of a launch."""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import torch

from warploom.attention.backends.cuda.alignment import MAX_BYTES, is_aligned
from warploom.attention.backends.cuda.attention_kernel import AttentionParams, KernelShape
from warploom.attention.backends.cuda.schedule import START_INTS, Planner, TileSizes, work_shape
from warploom.attention.backends.cuda.variant_source import (
    MAX_ARGUMENTS,
    VariantArguments,
    VariantSource,
    compiled_variants,
    variant_arguments,
    variant_source,
)
from warploom.attention.options import FP8_DTYPES
from warploom.attention.plan import AttentionBackend, AttentionCall, AttentionPlan, PreparedCall
from warploom.attention.problems.attention import AttentionProblem
from warploom.attention.schedule import WorkSchedule, WorkShape
from warploom.attention.tables import RequestTables
from warploom.attention.variants.base import AttentionVariant
from warploom.core.calls import Kept
from warploom.core.descriptors import TensorView
from warploom.core.jit import KernelSpec, PreparedLaunch, divisor_fields
from warploom.core.workspace import WorkspaceLayout

__all__ = ["HALF_DTYPES", "PersistentAttention"]

HALF_DTYPES = (torch.float16, torch.bfloat16)
_OUTPUTS = (*HALF_DTYPES, torch.float32)
_MOST_PLACES = 1024  # of keys and values: a cache for each layer
_CALL_TENSORS = 5  # with which `AttentionParams` begins: those of `PreparedCall`
_PLAN_TENSORS = (
    "qo_indptr", "kv_lens", "kv_starts", "pages", "starts", "partial_out", "partial_lse", "arrivals",
)  # fmt: skip  # which follow


class PlannedLaunch(NamedTuple):
    """What plans of a problem have in common."""

    spec: KernelSpec
    shape: KernelShape
    has_wide: bool
    threads: int  # of a block
    work: WorkShape
    variants: tuple[AttentionVariant, ...]
    planner: Planner


class PersistentSchedule(NamedTuple):
    """The launch of a plan's calls, and the addresses of `_PLAN_TENSORS`."""

    launch: PlannedLaunch
    addresses: tuple[int, ...]

    @property
    def work(self) -> WorkShape:
        """How work is divided."""
        return self.launch.work


class PersistentAttention(AttentionBackend):
    """A backend whose kernel takes `AttentionParams` and walks through its share of the work.

    Attributes
    ----------
    query_dtypes : tuple of torch.dtype
        Types of queries.
    takes_fp8_caches : bool
        With queries of 16 bits.
    rotates : bool
        Queries and keys, on the fly.
    query_alignment : int
        Bytes to which rows of queries are aligned.
    output_columns : int
        That are written at once, which rows of outputs are aligned to, up to 16 bytes.
    """

    query_dtypes: ClassVar[tuple[torch.dtype, ...]] = HALF_DTYPES
    takes_fp8_caches: ClassVar[bool]
    rotates: ClassVar[bool] = False
    query_alignment: ClassVar[int]
    output_columns: ClassVar[int]

    @abstractmethod
    def has_wide_tiles(self, problem: AttentionProblem, tables: RequestTables) -> bool:
        """Whether there are larger tiles: of more rows, for requests that have them, or of more keys."""

    @abstractmethod
    def kernel_shape(self, problem: AttentionProblem, has_wide: bool) -> KernelShape:
        """Blocks an SM and their shared memory."""

    @abstractmethod
    def block_threads(self, problem: AttentionProblem, has_wide: bool) -> int:
        """Threads of a block."""

    @abstractmethod
    def tile_sizes(self, problem: AttentionProblem, has_wide: bool) -> TileSizes:
        """Rows and keys of tiles."""

    @abstractmethod
    def kernel_spec(
        self, problem: AttentionProblem, has_wide: bool, shape: KernelShape, source: VariantSource
    ) -> KernelSpec:
        """The instance of the kernel."""

    def more_arguments(
        self, plan: AttentionPlan, q: TensorView, k: TensorView, v: TensorView, out: TensorView
    ) -> tuple[Any, ...]:
        """What the kernel takes after `AttentionParams`."""
        return ()

    def common_conditions(self, problem: AttentionProblem) -> tuple[tuple[bool, str], ...]:
        """What every such kernel needs, each with the reason why it refuses else."""
        known = ", ".join(str(dtype) for dtype in self.query_dtypes)
        or_fp8 = " or fp8" if self.takes_fp8_caches else ""
        return (
            (problem.dtype_q in self.query_dtypes, f"takes queries of {known}, not {problem.dtype_q}"),
            (
                problem.dtype_kv == problem.dtype_q or (self.takes_fp8_caches and problem.dtype_kv in FP8_DTYPES),
                f"keys and values must be {problem.dtype_q}{or_fp8}, not {problem.dtype_kv}",
            ),
            (self.rotates or problem.pos_encoding != "ROPE_LLAMA", "does not rotate queries and keys on the fly"),
            (problem.dtype_o in _OUTPUTS, f"writes float16, bfloat16 and float32, not {problem.dtype_o}"),
        )

    def note(self, problem: AttentionProblem) -> str:
        return "one launch of persistent blocks, each with the same number of key tiles"

    def workspace_layout(self, problem: AttentionProblem) -> WorkspaceLayout:
        blocks, rows = self._most_blocks(problem), self.tile_sizes(problem, True).wide_rows
        return (
            WorkspaceLayout("attention")
            .add("partial_lse", (blocks, 2, rows), torch.float32)
            .add("partial_out", (blocks, 2, rows, problem.head_dim_vo), torch.float32)
        )

    def state_layout(self, problem: AttentionProblem, batch: int) -> WorkspaceLayout:
        blocks = self._most_blocks(problem)
        return (
            WorkspaceLayout("attention")
            .add("starts", (blocks, START_INTS), torch.int32)
            .add("arrivals", blocks, torch.int32)
            .add("unit_indptr", batch + 1, torch.int64)
        )

    def _most_blocks(self, problem: AttentionProblem) -> int:
        return problem.sm_count * max(self.kernel_shape(problem, wide).blocks_per_sm for wide in (False, True))

    def schedule(self, plan: AttentionPlan) -> PersistentSchedule:
        problem, options, tables, state, workspace = plan.problem, plan.options, plan.tables, plan.state, plan.workspace
        has_wide = self.has_wide_tiles(problem, tables)
        launch = _planned_launch(self, problem, has_wide, options.variant, options.window_left)
        if not problem.cuda_graph:
            launch.planner.launch(tables, state)
        pages = tables.page_indices
        return PersistentSchedule(
            launch,
            (
                tables.qo_indptr.data_ptr(),
                tables.kv_lens.data_ptr(),
                tables.kv_indptr.data_ptr(),
                0 if pages is None else pages.data_ptr(),
                state.address("starts"),
                workspace.address("partial_out"),
                workspace.address("partial_lse"),
                state.address("arrivals"),
            ),
        )

    def kind(self, plan: AttentionPlan) -> Hashable:
        tables = plan.tables
        if tables.mask is not None or plan.alibi_slopes is not None:
            return None  # whose addresses are among the parameters
        sizes = tables.batch, tables.max_qo_len, tables.known_rows
        return plan.schedule.launch, plan.options, plan.problem, tables.device, sizes

    def divided_work(self, plan: AttentionPlan) -> WorkSchedule:
        host = plan.tables.on_host()
        return WorkSchedule.of(host.qo_lens, host.kv_lens, plan.schedule.work)

    def prepare(self, plan: AttentionPlan, call: AttentionCall) -> PreparedCall | None:
        tensors = (call.q, call.k, call.v, call.out)
        if call.q.shape[0] == 0 or plan.tables.batch == 0 or not all(is_aligned(x, MAX_BYTES) for x in tensors):
            return None
        launch: PlannedLaunch = plan.schedule.launch
        extra = variant_arguments(launch.variants, plan, call)
        params = _params(plan, call, extra, *tensors)
        views = tuple(TensorView.of(x) for x in tensors)
        more = self.more_arguments(plan, *views)
        kernel = launch.spec.load(call.q.device).prepare(
            launch.work.groups * launch.work.lanes,
            launch.threads,
            params,
            *more,
            smem=launch.shape.smem,
            pointers=_CALL_TENSORS + len(_PLAN_TENSORS),
        )
        return PreparedAttention(self, extra, kernel, views if more else None)

    def run(self, problem: AttentionProblem, plan: AttentionPlan, call: AttentionCall) -> None:  # type: ignore[override]
        if call.q.shape[0] == 0 or plan.tables.batch == 0:
            call.out.zero_()
            if call.lse is not None:
                call.lse.fill_(-torch.inf)
            return
        launch: PlannedLaunch = plan.schedule.launch
        if problem.cuda_graph:
            launch.planner.launch(plan.tables, plan.state)  # a replay plans for what the tables hold then
        q, k, v = (_aligned(x, n) for x, n in ((call.q, self.query_alignment), (call.k, 16), (call.v, 16)))
        width = min(self.output_columns * call.out.element_size(), MAX_BYTES)
        fits = is_aligned(call.out, width)
        out = call.out if fits else torch.empty(call.out.shape, dtype=call.out.dtype, device=call.out.device)
        params = _params(plan, call, variant_arguments(launch.variants, plan, call), q, k, v, out)
        kernel = launch.spec.load(call.q.device)
        more = self.more_arguments(plan, *(TensorView.of(x) for x in (q, k, v, out)))
        kernel.launch(launch.work.groups * launch.work.lanes, launch.threads, params, *more, smem=launch.shape.smem)
        if out is not call.out:
            call.out.copy_(out)


@functools.lru_cache(maxsize=256)
def _planned_launch(
    backend: PersistentAttention,
    problem: AttentionProblem,
    has_wide: bool,
    variant: AttentionVariant | None,
    window_left: int,
) -> PlannedLaunch:
    variants = compiled_variants(problem, variant)
    shape = backend.kernel_shape(problem, has_wide)
    spec = backend.kernel_spec(problem, has_wide, shape, variant_source(variants))
    blocks = problem.sm_count * shape.blocks_per_sm
    work = work_shape(problem, window_left, blocks, backend.tile_sizes(problem, has_wide))
    threads = backend.block_threads(problem, has_wide)
    return PlannedLaunch(spec, shape, has_wide, threads, work, variants, Planner(work))


@dataclass(slots=True)
class PreparedAttention:
    """A launch whose tensors are given by their addresses, in the order in which `AttentionParams` begins."""

    backend: PersistentAttention
    extra: VariantArguments  # whose tensors the launch reads
    kernel: PreparedLaunch
    views: (
        tuple[TensorView, ...] | None
    )  # of queries, keys, values and outputs, at the first call's addresses, if they matter
    _more: Kept[tuple[int, ...], tuple[Any, ...]] = field(default_factory=lambda: Kept(_MOST_PLACES))

    def __call__(self, plan: AttentionPlan, q: int, k: int, v: int, out: int, lse: int) -> None:
        schedule: PersistentSchedule = plan.schedule
        if plan.problem.cuda_graph:
            schedule.launch.planner.launch(plan.tables, plan.state)
        more = None if self.views is None else self._more_arguments(plan, (q, k, v, out), self.views)
        self.kernel.launch(q, k, v, out, lse, *schedule.addresses, more=more)

    def _more_arguments(
        self, plan: AttentionPlan, places: tuple[int, ...], views: tuple[TensorView, ...]
    ) -> tuple[Any, ...]:
        more = self._more.get(places)
        if more is None:
            moved = (replace(view, pointer=at) for view, at in zip(views, places, strict=True))
            more = self._more.keep(places, self.backend.more_arguments(plan, *moved))
        return more


def _aligned(tensor: torch.Tensor, nbytes: int) -> torch.Tensor:
    """The tensor, or a copy where its rows are not aligned to so many bytes or their elements lie apart."""
    return tensor if is_aligned(tensor, nbytes) else tensor.clone(memory_format=torch.contiguous_format)


def _padded(values: list[Any], fill: float | None) -> list[Any]:
    return values + [fill] * (MAX_ARGUMENTS - len(values))


def _params(
    plan: AttentionPlan,
    call: AttentionCall,
    extra: VariantArguments,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
) -> AttentionParams:
    tables, problem, options, work = plan.tables, plan.problem, plan.options, plan.schedule.work
    sinks = None if call.sinks is None else call.sinks.float().contiguous()
    return AttentionParams(
        q=q, k=k, v=v, out=out, lse=call.lse,
        **dict(zip(_PLAN_TENSORS, plan.schedule.addresses, strict=True)),
        logits_scales=call.logits_scales, value_scales=call.value_scales, sinks=sinks, mask_indptr=tables.mask_indptr,
        tensors=_padded(extra.tensors, None), integers=_padded(extra.integers, 0), numbers=_padded(extra.numbers, 0.0),
        q_stride=q.stride()[:2], out_stride=out.stride()[:2],
        k_stride=_row_strides(k), v_stride=_row_strides(v),
        lse_stride=(0, 0) if call.lse is None else call.lse.stride(),
        logits_scale=options.sm_scale * call.logits_scale, value_scale=call.value_scale,
        lse_unit=options.lse_unit * math.log(2.0),
        group_size=divisor_fields(problem.group_size), page_size=divisor_fields(max(tables.page_size, 1)),
        batch=tables.batch, q_rows=q.shape[0], num_kv_heads=problem.num_kv_heads,
        lanes=work.lanes, tile=work.tile_sizes,
        causal=problem.causal, window_left=options.window_left,
        logits_scales_step=_step(call.logits_scales), value_scales_step=_step(call.value_scales),
    )  # fmt: skip


def _row_strides(tensor: torch.Tensor) -> tuple[int, ...]:
    """Page, row and head of keys or values; rows that are not in pages have one page."""
    strides = tensor.stride()[:-1]
    return strides if len(strides) == 3 else (0, *strides)


def _step(scales: torch.Tensor | None) -> int:
    return 0 if scales is None or scales.numel() == 1 else 1
