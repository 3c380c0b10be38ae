"""The kernels that this family ships."""

from __future__ import annotations

from warploom.sampling.backends.cuda.softmax import softmax_spec
from warploom.sampling.parameters import FLOAT_TYPES

__all__ = ["SHIPPED"]

SHIPPED = [softmax_spec(dtype, resident) for dtype in FLOAT_TYPES for resident in (True, False)]
