"""The kernels that this family ships."""

from __future__ import annotations

import itertools

from warploom.sampling.backends.cuda.renorm import mask_spec, renorm_spec
from warploom.sampling.backends.cuda.sample import filtered_spec, plain_spec, top_k_spec, top_p_spec
from warploom.sampling.backends.cuda.softmax import softmax_spec
from warploom.sampling.backends.cuda.speculative import speculative_spec
from warploom.sampling.backends.cuda.topk import topk_spec
from warploom.sampling.parameters import FLOAT_TYPES

__all__ = ["SHIPPED"]

_YES_AND_NO = (True, False)
_DTYPE_AND_FLAG = list(itertools.product(FLOAT_TYPES, _YES_AND_NO))
_DTYPE_AND_FLAGS = list(itertools.product(FLOAT_TYPES, _YES_AND_NO, _YES_AND_NO))

SHIPPED = [
    *(softmax_spec(dtype, resident) for dtype, resident in _DTYPE_AND_FLAG),
    *(plain_spec(dtype, from_logits) for dtype, from_logits in _DTYPE_AND_FLAG),
    *(top_p_spec(dtype, from_logits) for dtype, from_logits in _DTYPE_AND_FLAG),
    *(spec(*config) for spec in (top_k_spec, filtered_spec, renorm_spec) for config in _DTYPE_AND_FLAGS),
    *(mask_spec(dtype, resident) for dtype, resident in _DTYPE_AND_FLAG),
    *(speculative_spec(dtype) for dtype in FLOAT_TYPES),
    *(topk_spec(dtype, resident) for dtype, resident in _DTYPE_AND_FLAG),
]
