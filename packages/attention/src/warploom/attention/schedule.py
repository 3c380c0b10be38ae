"""How the work of a batch is divided among persistent blocks: `schedule.cuh` in numpy, for tests and to be looked at.

An item is a tile of one request's query rows with one key-value head. It counts one unit for each tile of keys that it
sees, and some for what it takes beside them. Items lie end to end, and blocks have equal shares of that line, so a share
may begin and end within an item.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["WorkSchedule", "WorkShape"]

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class WorkShape:
    """What besides lengths decides how work is divided.

    Attributes
    ----------
    num_kv_heads, group_size : int
        Key-value heads, and query heads that share one.
    lanes : int
        Heads whose keys are read at the same time, each by blocks of its own; a divisor of `num_kv_heads`.
    groups : int
        Blocks of each lane.
    causal : bool
        Queries see no later keys.
    window_left : int
        Keys that a query sees before its own position; -1 for all.
    narrow_rows, wide_rows : int
        Rows of query tiles, of requests that have at most `narrow_rows` and of others. A row is a query with one head of
        a group.
    tile_keys : int
        Keys of a tile, a power of two.
    item_units : int
        What an item takes beside its tiles of keys.
    narrow_units, wide_units : int
        What a tile of keys takes with a narrow and with a wide query tile.
    whole_items : bool
        Items are not divided.
    min_chunk : int
        Units of a block, at least; not less than `narrow_units` and `wide_units`.
    """

    num_kv_heads: int
    group_size: int
    lanes: int
    groups: int
    causal: bool = False
    window_left: int = -1
    narrow_rows: int = 16
    wide_rows: int = 16
    tile_keys: int = 64
    item_units: int = 1
    narrow_units: int = 1
    wide_units: int = 1
    whole_items: bool = False
    min_chunk: int = 4

    @property
    def tile_sizes(self) -> tuple[int, ...]:
        """`TileSizes` of the kernels."""
        log2_keys = self.tile_keys.bit_length() - 1
        return self.narrow_rows, self.wide_rows, log2_keys, self.narrow_units, self.wide_units, self.item_units


@dataclass(frozen=True)
class WorkSchedule:
    """The items of one lane, in the order of the line, and the units where the blocks' shares begin.

    Attributes
    ----------
    shape : WorkShape
        What it was made for.
    requests, heads, tiles, units : numpy.ndarray
        Of each item: its request, the first lane's head, its query tile, its units.
    begins : numpy.ndarray
        `[groups + 1]`: units of the line at which the shares begin and end.

    Examples
    --------
    Two decodes of 640 and 128 keys, with one head, on two blocks:

    >>> shape = WorkShape(num_kv_heads=1, group_size=4, lanes=1, groups=2)
    >>> schedule = WorkSchedule.of([1, 1], [640, 128], shape)
    >>> schedule.units.tolist(), schedule.begins.tolist(), schedule.balance
    ([11, 3], [0, 7, 14], 1.0)
    """

    shape: WorkShape
    requests: Integers
    heads: Integers
    tiles: Integers
    units: Integers
    begins: Integers

    @classmethod
    def of(cls, qo_lens: Sequence[int], kv_lens: Sequence[int], shape: WorkShape) -> WorkSchedule:
        """Divide the work of requests with so many queries and keys."""
        items = [item for n, lens in enumerate(zip(qo_lens, kv_lens, strict=True)) for item in _items(n, *lens, shape)]
        requests, heads, tiles, units = np.array(items, dtype=np.int64).reshape(-1, 4).T
        ends = np.cumsum(units)
        total = int(ends[-1]) if len(items) else 0
        chunk = max(math.ceil(total / shape.groups), shape.min_chunk)
        begins = np.minimum(np.arange(shape.groups + 1, dtype=np.int64) * chunk, total)
        if shape.whole_items:
            starts = np.append(ends - units, total)
            begins = starts[np.searchsorted(starts, begins)]
        return cls(shape, requests, heads, tiles, units, begins)

    @property
    def total(self) -> int:
        """Units of a lane."""
        return int(self.units.sum())

    @property
    def longest(self) -> int:
        """Units of the longest share."""
        return int(np.diff(self.begins).max(initial=0))

    @property
    def balance(self) -> float:
        """The longest share over the mean one: 1 is perfect."""
        return self.longest * self.shape.groups / self.total if self.total else 1.0

    @property
    def shared_items(self) -> int:
        """Items of a lane whose keys lie in more than one block's share."""
        starts = np.cumsum(self.units) - self.units
        inner = self.begins[(self.begins > 0) & (self.begins < self.total)]
        cut = np.searchsorted(starts, inner, side="right") - 1
        return len(np.unique(cut[inner > starts[cut] + self.shape.item_units]))

    def shares(self, group: int) -> Iterator[tuple[int, int, int]]:
        """Item and units `[begin, end)` within it, of a group's blocks."""
        ends = np.cumsum(self.units)
        begin, end = int(self.begins[group]), int(self.begins[group + 1])
        for item in range(int(np.searchsorted(ends, begin, side="right")), len(self.units)):
            start = int(ends[item] - self.units[item])
            if start >= end:
                return
            yield item, max(begin - start, 0), min(end - start, int(self.units[item]))


def _items(request: int, qo_len: int, kv_len: int, shape: WorkShape) -> Iterator[tuple[int, int, int, int]]:
    """Request, head, tile and units."""
    rows = qo_len * shape.group_size
    is_wide = rows > shape.narrow_rows
    tile_rows = shape.wide_rows if is_wide else shape.narrow_rows
    tile_units = shape.wide_units if is_wide else shape.narrow_units
    before = kv_len - qo_len  # position of the first query among the keys
    for head in range(0, shape.num_kv_heads, shape.lanes):
        for tile in range(math.ceil(rows / tile_rows)):
            first = tile * tile_rows // shape.group_size
            last = min(((tile + 1) * tile_rows - 1) // shape.group_size, qo_len - 1)
            keys = min(kv_len, last + before + 1) if shape.causal else kv_len
            begin = max(first + before - shape.window_left, 0) // shape.tile_keys if shape.window_left >= 0 else 0
            tiles = max(math.ceil(max(keys, 0) / shape.tile_keys) - begin, 0)
            yield request, head, tile, shape.item_units + tiles * tile_units
