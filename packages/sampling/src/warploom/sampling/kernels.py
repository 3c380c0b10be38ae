"""The kernels that this family ships."""

from __future__ import annotations

import itertools

from warploom.sampling.backends.cuda.renorm import mask_spec, renorm_spec
from warploom.sampling.backends.cuda.sample import filtered_spec, plain_spec
from warploom.sampling.backends.cuda.softmax import softmax_spec
from warploom.sampling.backends.cuda.speculative import speculative_spec
from warploom.sampling.backends.cuda.topk import topk_spec
from warploom.sampling.parameters import FLOAT_TYPES

__all__ = ["SHIPPED"]

_YES_AND_NO = (True, False)
_DTYPE_AND_FLAG = list(itertools.product(FLOAT_TYPES, _YES_AND_NO))

SHIPPED = [
    *(softmax_spec(dtype, resident) for dtype, resident in _DTYPE_AND_FLAG),
    *(plain_spec(dtype, from_logits) for dtype, from_logits in _DTYPE_AND_FLAG),
    *(filtered_spec(*config) for config in itertools.product(FLOAT_TYPES, _YES_AND_NO, _YES_AND_NO, _YES_AND_NO)),
    *(renorm_spec(*config) for config in itertools.product(FLOAT_TYPES, _YES_AND_NO, _YES_AND_NO)),
    *(mask_spec(dtype, resident) for dtype, resident in _DTYPE_AND_FLAG),
    *(speculative_spec(dtype) for dtype in FLOAT_TYPES),
    *(topk_spec(dtype, resident) for dtype, resident in _DTYPE_AND_FLAG),
]
