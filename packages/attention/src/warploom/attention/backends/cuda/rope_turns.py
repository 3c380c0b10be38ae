"""How far each pair of components turns from one position to the next, for kernels that rotate queries and keys on the fly."""

from __future__ import annotations

import functools
import math
from typing import Annotated

import numpy as np

from warploom.attention.backends.reference.rotation import frequencies
from warploom.attention.problems.attention import MAX_HEAD_DIM
from warploom.core.jit import ParamStruct, u64

__all__ = ["RopeTurns", "rope_turns"]


class RopeTurns(ParamStruct):
    cpp_name = "warploom::attention::RopeTurns"
    of_pair: Annotated[u64, MAX_HEAD_DIM // 2]


@functools.lru_cache(256)
def rope_turns(head_dim: int, rope_scale: float, rope_theta: float) -> RopeTurns:
    """Revolutions per position times ``2**64``, of the reference's frequencies, which are rounded to float32.

    Products with positions wrap where angles do. What rounding to float64 leaves of an angle at position ``2**31`` is
    ``2**-20`` radians for a frequency of 1.

    Examples
    --------
    >>> import struct
    >>> struct.unpack("Q", rope_turns(64, 1.0, 1e4).packed[:8])[0] / 2**64  # a radian
    0.15915494309189535
    """
    radians = frequencies(head_dim, rope_scale, rope_theta).double().numpy()
    turns = (np.fmod(radians / (2.0 * math.pi), 1.0) * 2.0**64).astype(np.uint64).tolist()
    return RopeTurns(of_pair=turns + [0] * (MAX_HEAD_DIM // 2 - len(turns)))
