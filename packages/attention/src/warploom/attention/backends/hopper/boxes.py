"""What of keys and values TMA copies at once."""

from __future__ import annotations

import math
from dataclasses import replace

from warploom.core.descriptors import TensorMap, TensorView, tensor_map

__all__ = ["NO_MAP", "SPAN", "box_rows", "key_value_map"]

SPAN = 128  # bytes within which TMA exchanges pieces: a row of a box
NO_MAP = TensorMap(bytes(128))


def box_rows(page_size: int, tile_keys: int, least: int = 8) -> int:
    """Rows of keys that TMA copies at once, all of one page; 0 where that were fewer than `least`. Without pages: a tile.

    Eight is after how many rows the exchange of pieces repeats.

    Examples
    --------
    >>> [box_rows(page_size, 128) for page_size in (0, 1, 16, 24, 256)]
    [128, 0, 16, 8, 128]
    """
    rows = math.gcd(page_size, tile_keys)
    return rows if rows >= least else 0


def key_value_map(rows: TensorView, box_rows: int, whole_rows: bool = False) -> TensorMap:
    """Rows of keys or values, of shape ``[pages, page_size, heads, dim]`` or ``[rows, heads, dim]``, head by head.

    A box has some rows' components within the span, or, with `whole_rows` and where they fill the span several times, all of
    them, span after span. L2 fetches no more than is asked for: with 256 bytes at a time all reads are 8 % slower.
    """
    if not box_rows or 0 in rows.shape:
        return NO_MAP
    *pages, page_size, heads, dim = rows.shape
    *page, row, head, element = rows.strides
    shape, strides = (*(pages or [1]), heads, page_size, dim), (*(page or [0]), head, row, element)
    columns = SPAN // rows.dtype.itemsize
    if not whole_rows or dim % columns:
        return tensor_map(replace(rows, shape=shape, strides=strides), (1, 1, box_rows, columns), l2="128B")
    by_span = replace(
        rows,
        shape=(*shape[:2], dim // columns, page_size, columns),
        strides=(*strides[:2], columns * element, row, element),
    )
    return tensor_map(by_span, (1, 1, dim // columns, box_rows, columns), l2="128B")
