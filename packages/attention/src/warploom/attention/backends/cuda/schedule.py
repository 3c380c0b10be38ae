"""Launch of the planner of `schedule.cuh`."""

from __future__ import annotations

import torch

from warploom.attention.plan import AttentionPlan
from warploom.core.jit import KernelSpec, ParamStruct, i32, ptr

__all__ = ["SCHEDULE_SPEC", "START_INTS", "launch_schedule"]

_THREADS = 1024
_MIN_CHUNK = 4  # units of a block: three tiles of keys are worth a merge
START_INTS = 8  # of `WorkStart`


class ScheduleParams(ParamStruct):
    cpp_name = "warploom::attention::ScheduleParams"
    qo_indptr: ptr
    kv_lens: ptr
    unit_indptr: ptr
    starts: ptr
    batch: i32
    num_kv_heads: i32
    group_size: i32
    causal: i32
    window_left: i32
    has_wide: i32
    blocks: i32
    min_chunk: i32
    whole_items: i32


SCHEDULE_SPEC = KernelSpec(
    family="attention",
    header="warploom/attention/schedule.cuh",
    kernel="warploom::attention::schedule_kernel",
    config={"kThreads": _THREADS},
    params=(ScheduleParams,),
)


def launch_schedule(plan: AttentionPlan, has_wide: bool) -> None:
    """Write where each block's work begins to the plan's `starts` ``[blocks, 8]`` (int32), from what its tables hold now."""
    tables, problem = plan.tables, plan.problem
    starts = plan.workspace["starts"]
    units = torch.empty(tables.batch + 1, dtype=torch.int64, device=tables.device)
    params = ScheduleParams(
        qo_indptr=tables.qo_indptr,
        kv_lens=tables.kv_lens,
        unit_indptr=units,
        starts=starts,
        batch=tables.batch,
        num_kv_heads=problem.num_kv_heads,
        group_size=problem.group_size,
        causal=problem.causal,
        window_left=plan.options.window_left,
        has_wide=has_wide,
        blocks=starts.shape[0],
        min_chunk=_MIN_CHUNK,
        whole_items=problem.deterministic,
    )
    SCHEDULE_SPEC.load(tables.device).launch(1, _THREADS, params)
