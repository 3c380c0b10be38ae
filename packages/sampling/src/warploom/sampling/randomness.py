"""Where the random numbers of a call come from.

Every operator draws from the counter-based generator Philox 4x32-10, as a pure function of four integers

    ``(seed, offset, row, block)``

* ``seed``, 64 bits: the user's, for all rows or one a row; without one it is drawn from `generator`, or from the
  device's default generator, on the device: no synchronisation, and CUDA-graph replays draw a new one.
* ``offset``, 64 bits: the user's, 0 without one. An offset *tensor* is advanced by 1 in place by every call, on the
  device, so that the next call, or the next replay of a CUDA graph, draws fresh numbers; a number is not.
* ``row``, 32 bits: the number of the output row when one seed serves all rows. **0 when each row has its own seed**,
  so that a request draws the same tokens at whatever place of whatever batch it is served.
* ``block``, 32 bits: which numbers of the row.

The 128-bit counter is ``offset * 2**64 + row * 2**32 + block``, the key is the seed, and four words come out of a block:

* word ``(q // 32) % 4`` of block ``q // 128 * 32 + q % 32`` is that of quad ``q`` in the first heat of a draw
  (`warploom.sampling.steps`): a thread that takes four quads 32 apart, as coalesced loads have it, needs one block;
* word ``t % 4`` of block ``2**30 + t // 4`` is that of token ``t`` in the second heat;
* word ``i % 4`` of block ``2**31 + i // 4`` decides about draft token ``i`` in speculative verification.

A word ``w`` becomes

* a *uniform* number ``(w >> 8) * 2**-24`` in [0, 1), exact in float32, or
* an *exponential* one ``-log1p(-(w + 0.5) * 2**-32)``, whose small values, which win races, keep full resolution.

Source: J. K. Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import numbers
from typing import Any, NamedTuple

import torch

from warploom.core.errors import ArgumentError
from warploom.core.tensors import Checker
from warploom.sampling.parameters import is_number, row_tensor

__all__ = [
    "ACCEPT_DRAW",
    "QUAD",
    "QUAD_TILE",
    "RANDOM_SCHEMA",
    "SECOND_HEAT",
    "RandomState",
    "random_state",
]

# The fields of a `RandomState` as a torch operator takes them.
RANDOM_SCHEMA = "Tensor? seed, int seed_value, Tensor(z!)? offset, int offset_value"

QUAD = 4  # tokens that race as one
QUAD_TILE = 128  # quads that share 32 blocks
SECOND_HEAT = 1 << 30
ACCEPT_DRAW = 1 << 33  # first draw of the blocks from 2**31

_INT64_MAX = 2**63 - 1


class RandomState(NamedTuple):
    """Seed and offset of a call, each a tensor (``[1]`` or ``[rows]``, int64) if there is one, else a number."""

    seed: torch.Tensor | None
    seed_value: int
    offset: torch.Tensor | None
    offset_value: int

    @property
    def per_row_seed(self) -> bool:
        """Whether each row has its own seed (with a single row it makes no difference)."""
        return self.seed is not None and self.seed.numel() > 1

    def advance(self) -> None:
        """Advance a device-resident offset; every backend does this, or the equal, once a call."""
        if self.offset is not None:
            self.offset.add_(1)


def random_state(
    check: Checker, rows: int, seed: Any, offset: Any, generator: torch.Generator | None, device: torch.device
) -> RandomState:
    """Check seed, offset and generator of a call with `rows` output rows, and draw a seed if there is none."""
    if seed is None:
        seed = _draw_seed(check, generator, device)
    elif generator is not None:
        hint = "A seed and a generator exclude each other."
        raise ArgumentError.of(check.op, "generator", "None when `seed` is given", "both", hint)
    seed_tensor, seed_value = _words64(check, "seed", seed, rows)
    offset_tensor, offset_value = _words64(check, "offset", 0 if offset is None else offset, rows)
    return RandomState(seed_tensor, seed_value, offset_tensor, offset_value)


def _draw_seed(check: Checker, generator: torch.Generator | None, device: torch.device) -> torch.Tensor | int:
    if generator is None or generator.device.type == device.type:
        return torch.randint(0, _INT64_MAX, (1,), dtype=torch.int64, device=device, generator=generator)
    # A CPU generator for GPU tensors: the number is drawn on the host and needs no copy back.
    expected = f"a generator of {device.type} or of the CPU"
    check.require(generator.device.type == "cpu", "generator", expected, f"one of {generator.device}")
    return int(torch.randint(0, _INT64_MAX, (1,), dtype=torch.int64, generator=generator).item())


def _words64(check: Checker, name: str, value: Any, rows: int) -> tuple[torch.Tensor | None, int]:
    if is_number(value, numbers.Integral):
        number = int(value)
        if not -(2**63) <= number < 2**64:
            raise ArgumentError.of(check.op, name, "an integer of 64 bits", str(number))
        return None, number - 2**64 if number > _INT64_MAX else number
    tensor = row_tensor(check, name, value, rows, (torch.int64,))
    return tensor.view(-1) if tensor.dim() == 0 else tensor, 0
