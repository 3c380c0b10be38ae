"""How a product is cut into tiles, and which tiles the kernel has: stated once, for choice, tuner and tests."""

from __future__ import annotations

import functools
from typing import NamedTuple

from warploom.core.backends import Support
from warploom.gemm.scales import ceil_div

__all__ = [
    "BLOCK_ROWS",
    "H200_SMS",
    "SPAN_BYTES",
    "GemmTiles",
    "ProductShape",
    "deepest",
    "shares_column_scale",
    "static_bytes",
    "tile_support",
]

H200_SMS = 132  # what shipped kernels and descriptions of choices are for
SPAN_BYTES = 128  # of a row that are copied at once, and whose products of 8 bits are summed before float32
BLOCK_ROWS = 128  # of weights, that share a scale in what tiles are made for
_GROUP_ROWS = 64  # of a warpgroup's product
_SHARED_BYTES = 227 * 1024  # of a block, static part included
_RESULT_BYTES = 2048  # of each computing warp
_MOST_STAGES = 12
_REGISTERS = 224  # of a computing thread
_OTHER_REGISTERS = 32  # addresses, scales, loop counters
_RESIDENT = {1: 1.0, 2: 1.0, 4: 0.92, 8: 0.92}  # of an H200's SMs, that clusters of so many blocks can use at once


class GemmTiles(NamedTuple):
    """A tile of the output, and how blocks work on it.

    Attributes
    ----------
    swapped : bool
        Rows of the matrix instruction are weights and its columns tokens, for few tokens.
    warpgroups, waves : int
        Warpgroups that compute, and blocks of 64 rows of each: a tile has ``64 * warpgroups * waves`` rows.
    columns : int
        Of a tile: 8 to 256.
    stages : int
        Spans of 128 bytes of both operands in shared memory.
    cluster : int
        Blocks that share the copies of tokens.
    parts : int
        Blocks that share a tile's steps of k.
    used : int
        Rows of weights that a tile takes, fewer than it could so that all blocks have as much to do; 0 for all.
    """

    swapped: bool
    warpgroups: int
    waves: int
    columns: int
    stages: int
    cluster: int = 1
    parts: int = 1
    used: int = 0

    @property
    def rows(self) -> int:
        return _GROUP_ROWS * self.warpgroups * self.waves

    @property
    def token_tile(self) -> int:
        return self.columns if self.swapped else self.rows

    @property
    def weight_tile(self) -> int:
        """Rows of weights that a tile has room for."""
        return self.rows if self.swapped else self.columns

    @property
    def weights(self) -> int:
        """Rows of weights that a tile takes."""
        return self.used or self.weight_tile

    @property
    def blocks(self) -> int:
        """Of a cluster."""
        return self.cluster * self.parts

    def clusters(self, sms: int) -> int:
        """That run at once on a GPU with so many multiprocessors."""
        return max(1, int(sms // self.blocks * _RESIDENT[self.blocks]))

    @property
    def compiled(self) -> GemmTiles:
        """What a kernel is compiled for."""
        return self._replace(used=0)

    @property
    def stage_bytes(self) -> int:
        """That are copied in a step."""
        return (self.token_tile + self.weights) * SPAN_BYTES

    @property
    def part_bytes(self) -> int:
        """Sums that the other blocks of a cluster send to one of them."""
        blocks = self.columns // 8
        finishers = max(1, min(self.parts, blocks // (1 if self.swapped else 8)))
        return (self.parts - 1) * self.rows * (blocks // finishers) * 8 * 4

    @property
    def smem(self) -> int:
        """Bytes of dynamic shared memory, with what aligning it may cost."""
        return self.stages * (self.rows + self.columns) * SPAN_BYTES + self.part_bytes + 1024

    @property
    def threads(self) -> int:
        return 128 * (self.warpgroups + 1)

    def __str__(self) -> str:
        of = "weights x tokens" if self.swapped else "tokens x weights"
        parts = [f"{self.rows}x{self.columns} ({of})", f"{self.stages} stages"]
        if self.used:
            parts.append(f"{self.used} rows of weights")
        if self.cluster > 1:
            parts.append(f"{self.cluster} blocks share tokens")
        if self.parts > 1:
            parts.append(f"{self.parts} blocks share k")
        return ", ".join(parts)


class ProductShape(NamedTuple):
    """What tiles are chosen by.

    Attributes
    ----------
    groups, tokens : int
        Matrices of weights that are used, and about how many tokens each has.
    n, k : int
        Rows and columns of the weights.
    itemsize : int
        Bytes of an element: 1 or 2.
    has_blocks : bool
        Scales are those of blocks of k.
    shares_scales : bool
        128 rows of weights have one such scale.
    weights_turned : bool
        Weights are stored ``[k, n]``.
    gathers : bool
        Tokens lie anywhere, and are not copied by TMA.
    """

    groups: int
    tokens: int
    n: int
    k: int
    itemsize: int
    has_blocks: bool = False
    shares_scales: bool = False
    weights_turned: bool = False
    gathers: bool = False

    @property
    def steps(self) -> int:
        """Spans of k."""
        return ceil_div(self.k * self.itemsize, SPAN_BYTES)

    @property
    def depth(self) -> int:
        """Elements of a span."""
        return SPAN_BYTES // self.itemsize


def static_bytes(tiles: GemmTiles, has_blocks: bool, shares_scale: bool) -> int:
    """About what a block has in shared memory besides its stages."""
    scales = (tiles.rows + (4 if shares_scale else tiles.columns)) * 4 * tiles.stages if has_blocks else 0
    barriers_and_tiles = 256 + 40 * tiles.stages + 96 * tiles.warpgroups
    return scales + 4 * tiles.warpgroups * _RESULT_BYTES + 1024 * 4 + barriers_and_tiles


def shares_column_scale(tiles: GemmTiles, shape: ProductShape) -> bool:
    """Whether all columns of a tile have one scale in each span: weights whose blocks the tile does not cross."""
    return shape.has_blocks and shape.shares_scales and not tiles.swapped and BLOCK_ROWS % tiles.weights == 0


def tile_support(tiles: GemmTiles, shape: ProductShape) -> Support:
    """Whether the kernel has such tiles for such a product, or every reason why not.

    Examples
    --------
    >>> shape = ProductShape(groups=1, tokens=4096, n=4096, k=7168, itemsize=2)
    >>> bool(tile_support(GemmTiles(False, 2, 1, 256, 4), shape))
    True
    >>> tile_support(GemmTiles(False, 2, 2, 256, 2), shape).reasons
    ('sums take 256 registers of 192',)
    """
    promotes = shape.itemsize == 1
    shares = shares_column_scale(tiles, shape)
    sums = tiles.columns // 2 * (tiles.waves + promotes)
    scales = tiles.columns // 4 if shape.has_blocks and not shares else 0
    shared = tiles.smem + static_bytes(tiles, shape.has_blocks, shares)
    least = 8 if tiles.swapped else 64
    room = _REGISTERS - _OTHER_REGISTERS
    used = tiles.weights
    return Support.of(
        (tiles.columns in (8, 16, 32, 64, 128, 256), f"tiles have 8, 16, ... or 256 columns, not {tiles.columns}"),
        (tiles.columns >= least, f"tokens in rows need at least 64 columns, not {tiles.columns}"),
        (tiles.rows <= 256, f"TMA copies at most 256 rows, not {tiles.rows}"),
        (2 <= tiles.stages <= _MOST_STAGES, f"2 to {_MOST_STAGES} stages, not {tiles.stages}"),
        (tiles.cluster in (1, 2), f"1 or 2 blocks share tokens, not {tiles.cluster}"),
        (tiles.parts in _RESIDENT, f"1, 2, 4 or 8 blocks share k, not {tiles.parts}"),
        (tiles.cluster == 1 or not (tiles.swapped or tiles.parts > 1), "blocks share tokens in rows, or k"),
        (tiles.cluster == 1 or not shape.gathers, "blocks don't share tokens that are gathered"),
        (tiles.parts <= shape.steps, f"{tiles.parts} blocks can't share {shape.steps} steps of k"),
        (used % 8 == 0 and used <= tiles.weight_tile, f"a tile takes 8, 16, ... rows of weights, not {used}"),
        (sums + scales <= room, f"sums take {sums + scales} registers of {room}"),
        (shared <= _SHARED_BYTES, f"{shared} bytes of shared memory of {_SHARED_BYTES}"),
        (not shape.weights_turned or shape.itemsize == 2, "weights of 8 bits are stored [n, k]"),
        (not shape.weights_turned or used == tiles.weight_tile, "of weights stored [k, n] tiles take all rows"),
        (
            not shape.weights_turned or tiles.weight_tile % shape.depth == 0,
            f"weights stored [k, n] come in {shape.depth}s",
        ),
    )


@functools.lru_cache(4096)
def deepest(tiles: GemmTiles, shape: ProductShape) -> GemmTiles | None:
    """The same tiles with as many stages as fit, if they are valid."""
    for stages in range(_MOST_STAGES, 1, -1):
        deep = tiles._replace(stages=stages)
        if tile_support(deep, shape):
            return deep
    return None
