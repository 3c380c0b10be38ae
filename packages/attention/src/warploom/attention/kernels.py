"""The kernel instances that are built ahead of time and compiled in the test suite."""

from __future__ import annotations

import torch

from warploom.attention.backends.cuda.merge import merge_state_spec, merge_states_spec
from warploom.attention.backends.cuda.page import BATCH_INDICES_POSITIONS_SPEC, SEQ_LENS_SPEC, convert_spec, copy_spec

__all__ = ["SHIPPED"]

_FP32, _FP16, _BF16 = torch.float32, torch.float16, torch.bfloat16
_E4M3, _E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
# Input and output of merges with their widest access; float32 to 16 bits is for partial results of split-KV attention.
_MERGES = ((_FP16, _FP16, 8), (_BF16, _BF16, 8), (_FP32, _FP32, 4), (_FP32, _FP16, 4), (_FP32, _BF16, 4))
_UNALIGNED_MERGES = ((_FP16, _FP16, 1), (_BF16, _BF16, 1), (_FP32, _FP32, 1))

SHIPPED = [
    *(copy_spec(nbytes) for nbytes in (16, 8, 4, 2, 1)),
    *(convert_spec(dtype, cache, 8) for dtype in (_BF16, _FP16) for cache in (_E4M3, _E5M2)),
    *(convert_spec(_FP32, cache, 4) for cache in (_BF16, _FP16, _E4M3, _E5M2)),
    *(convert_spec(dtype, _E4M3, 1) for dtype in (_BF16, _FP16)),
    BATCH_INDICES_POSITIONS_SPEC,
    SEQ_LENS_SPEC,
    *(merge_state_spec(*merge) for merge in (*_MERGES, *_UNALIGNED_MERGES)),
    *(merge_states_spec(*merge) for merge in (*_MERGES, *_UNALIGNED_MERGES)),
]
