"""Launch of the planner of `schedule.cuh`."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch

from warploom.attention.problems.attention import AttentionProblem
from warploom.attention.schedule import WorkShape
from warploom.attention.tables import RequestTables
from warploom.core.calls import Kept
from warploom.core.jit import Divisor, KernelSpec, ParamStruct, PreparedLaunch, divisor_fields, i32, ptr
from warploom.core.workspace import Workspace

__all__ = ["SCHEDULE_SPEC", "START_INTS", "Planner", "TileSizes", "schedule_lanes", "work_shape"]

_THREADS = 1024
_MOST_LANES = 8
_MIN_TILES = 3  # of keys, that are worth a merge
_MOST_LAUNCHES = 256
_UNWRITTEN = {"": 0, "kv_lens": 1, "kv_indptr": 2}  # `Unwritten`
_TENSORS = ("qo_indptr", "kv_lens", "kv_starts", "last_page_len", "unit_indptr", "starts", "arrivals")
START_INTS = 18  # of `WorkStart`


class ScheduleParams(ParamStruct):
    cpp_name = "warploom::attention::ScheduleParams"
    qo_indptr: ptr
    kv_lens: ptr
    kv_starts: ptr
    last_page_len: ptr
    unit_indptr: ptr
    starts: ptr
    arrivals: ptr
    group_size: Divisor
    batch: i32
    unwritten: i32
    page_size: i32
    num_kv_heads: i32
    causal: i32
    window_left: i32
    tile: Annotated[i32, 6]
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
    """Rows of query tiles, of requests with few rows and of others; keys of a tile; and units, as `WorkShape` has them."""

    narrow_rows: int
    wide_rows: int
    tile_keys: int
    narrow_units: int = 1
    wide_units: int = 1
    item_units: int = 1


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
        min_chunk=_MIN_TILES * tile.narrow_units + tile.item_units,
    )


class Planner:
    """Divides work of one shape, by the kernel of `schedule.cuh`."""

    def __init__(self, shape: WorkShape) -> None:
        self._shape = shape
        self._launches: Kept[tuple[torch.device, int, str, int], PreparedLaunch] = Kept(_MOST_LAUNCHES)

    def launch(self, tables: RequestTables, state: Workspace) -> None:
        """Write where each block's work begins to `starts` ``[blocks, 16]`` (int32), from what the tables hold now.

        Nobody has arrived at a shared item then: `arrivals` are 0. What the tables have `unwritten` is written.
        """
        last = tables.last_page_len
        key = tables.device, tables.batch, tables.unwritten, tables.page_size
        prepared = self._launches.get(key)
        if prepared is None:
            prepared = self._prepare(*key)
        prepared.launch(
            tables.qo_indptr.data_ptr(),
            tables.kv_lens.data_ptr(),
            tables.kv_indptr.data_ptr(),
            0 if last is None else last.data_ptr(),
            state.address("unit_indptr"),
            state.address("starts"),
            state.address("arrivals"),
        )
        tables.unwritten = ""

    def _prepare(self, device: torch.device, batch: int, unwritten: str, page_size: int) -> PreparedLaunch:
        shape = self._shape
        params = ScheduleParams(
            **dict.fromkeys(_TENSORS),
            group_size=divisor_fields(shape.group_size),
            batch=batch,
            unwritten=_UNWRITTEN[unwritten],
            page_size=max(page_size, 1),  # rows that are not in pages
            num_kv_heads=shape.num_kv_heads,
            causal=shape.causal,
            window_left=shape.window_left,
            tile=shape.tile_sizes,
            lanes=shape.lanes,
            groups=shape.groups,
            min_chunk=shape.min_chunk,
            whole_items=shape.whole_items,
        )
        prepared = SCHEDULE_SPEC.load(device).prepare(1, _THREADS, params, pointers=len(_TENSORS))
        return self._launches.keep((device, batch, unwritten, page_size), prepared)
