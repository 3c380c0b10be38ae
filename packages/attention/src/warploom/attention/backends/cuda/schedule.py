"""Launch of the planner of `schedule.cuh`."""

from __future__ import annotations

import functools
from typing import Annotated, NamedTuple

import torch

from warploom.attention.plan import AttentionPlan
from warploom.attention.problems.attention import AttentionProblem
from warploom.attention.schedule import WorkShape
from warploom.core.jit import Divisor, KernelSpec, ParamStruct, PreparedLaunch, divisor_fields, i32, ptr

__all__ = ["SCHEDULE_SPEC", "START_INTS", "launch_schedule", "schedule_lanes", "work_shape"]

_THREADS = 1024
_MOST_LANES = 8
_TENSORS = ("qo_indptr", "kv_lens", "kv_starts", "unit_indptr", "starts", "arrivals")
_MIN_CHUNK = 4  # units of a block: three tiles of keys are worth a merge
START_INTS = 16  # of `WorkStart`


class ScheduleParams(ParamStruct):
    cpp_name = "warploom::attention::ScheduleParams"
    qo_indptr: ptr
    kv_lens: ptr
    kv_starts: ptr
    unit_indptr: ptr
    starts: ptr
    arrivals: ptr
    group_size: Divisor
    batch: i32
    num_kv_heads: i32
    causal: i32
    window_left: i32
    tile: Annotated[i32, 3]
    lanes: i32
    groups: i32
    min_chunk: i32
    whole_items: i32


SCHEDULE_SPEC = KernelSpec(
    family="attention",
    header="warploom/attention/schedule.cuh",
    kernel="warploom::attention::schedule_kernel",
    config={"kThreads": _THREADS},
    params=(ScheduleParams,),
)


class TileSizes(NamedTuple):
    """Rows of query tiles, of requests with few rows and of others, and keys of a tile."""

    narrow_rows: int
    wide_rows: int
    tile_keys: int


def schedule_lanes(num_kv_heads: int, blocks: int) -> int:
    """Heads whose keys are read at the same time: they are neighbours in memory. As few blocks are left over as can be.

    Examples
    --------
    >>> [schedule_lanes(heads, 264) for heads in (1, 6, 8, 32)]
    [1, 6, 8, 8]
    >>> schedule_lanes(8, 132)
    4
    """
    divisors = [lanes for lanes in range(1, _MOST_LANES + 1) if num_kv_heads % lanes == 0]
    return max(divisors, key=lambda lanes: (blocks // lanes * lanes, lanes))


def work_shape(problem: AttentionProblem, window_left: int, blocks: int, tile: TileSizes) -> WorkShape:
    """What the planner divides by."""
    lanes = schedule_lanes(problem.num_kv_heads, blocks)
    return WorkShape(
        num_kv_heads=problem.num_kv_heads,
        group_size=problem.group_size,
        lanes=lanes,
        groups=blocks // lanes,
        causal=problem.causal,
        window_left=window_left,
        **tile._asdict(),
        whole_items=problem.deterministic,
        min_chunk=_MIN_CHUNK,
    )


def launch_schedule(plan: AttentionPlan, shape: WorkShape) -> None:
    """Write where each block's work begins to the plan's `starts` ``[blocks, 16]`` (int32), from what its tables hold now.

    Nobody has arrived at a shared item then: the plan's `arrivals` are 0.
    """
    tables, workspace = plan.tables, plan.workspace
    units = torch.empty(tables.batch + 1, dtype=torch.int64, device=tables.device)
    tensors = (tables.qo_indptr, tables.kv_lens, tables.kv_starts, units, workspace["starts"], workspace["arrivals"])
    _prepared(shape, tables.batch, tables.device).launch(*(x.data_ptr() for x in tensors))


@functools.lru_cache(maxsize=256)
def _prepared(shape: WorkShape, batch: int, device: torch.device) -> PreparedLaunch:
    """The launch but for the tensors, with which `ScheduleParams` begins."""
    params = ScheduleParams(
        **dict.fromkeys(_TENSORS),
        batch=batch,
        num_kv_heads=shape.num_kv_heads,
        group_size=divisor_fields(shape.group_size),
        causal=shape.causal,
        window_left=shape.window_left,
        tile=shape.tile_sizes,
        lanes=shape.lanes,
        groups=shape.groups,
        min_chunk=shape.min_chunk,
        whole_items=shape.whole_items,
    )
    return SCHEDULE_SPEC.load(device).prepare(1, _THREADS, params, pointers=len(_TENSORS))
