"""The kernel instances that are built ahead of time and compiled in the test suite."""

from __future__ import annotations

import torch

from warploom.attention.backends.cuda.attention_kernel import attention_spec, kernel_shape
from warploom.attention.backends.cuda.mask import packbits_spec
from warploom.attention.backends.cuda.merge import merge_state_spec, merge_states_spec
from warploom.attention.backends.cuda.page import BATCH_INDICES_POSITIONS_SPEC, SEQ_LENS_SPEC, convert_spec, copy_spec
from warploom.attention.backends.cuda.rope import rope_spec
from warploom.attention.backends.cuda.rope_append import rope_append_spec
from warploom.attention.backends.cuda.schedule import SCHEDULE_SPEC
from warploom.attention.backends.cuda.variant_source import variant_source
from warploom.attention.backends.cutlass.attention import LIBRARIES, cutlass_spec
from warploom.attention.backends.hopper.attention import hopper_spec
from warploom.attention.backends.hopper.decode import decode_spec
from warploom.attention.variants import AttentionVariant
from warploom.attention.variants.alibi import ALIBI
from warploom.attention.variants.custom_mask import PACKED_MASK
from warploom.attention.variants.soft_cap import SOFT_CAP
from warploom.core.jit import KernelSpec

__all__ = ["SHIPPED"]

_FP32, _FP16, _BF16 = torch.float32, torch.float16, torch.bfloat16
_E4M3, _E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
# Input and output of merges with their widest access; float32 to 16 bits is for partial results of split-KV attention.
_MERGES = ((_FP16, _FP16, 8), (_BF16, _BF16, 8), (_FP32, _FP32, 4), (_FP32, _FP16, 4), (_FP32, _BF16, 4))
_UNALIGNED_MERGES = ((_FP16, _FP16, 1), (_BF16, _BF16, 1), (_FP32, _FP32, 1))

# Head dims of keys and values, and whether there are tiles of 64 query rows.
_HEADS = ((64, 64, False), (64, 64, True), (128, 128, False), (128, 128, True), (192, 128, True), (256, 256, False))
_HEADS_WITH_ROPE = ((64, 64, False), (80, 80, True), (128, 128, False), (128, 128, True), (256, 256, False))


def _attention(
    dtype: torch.dtype,
    head_dim: int,
    value_dim: int,
    has_wide: bool,
    *variants: AttentionVariant,
    dtype_kv: torch.dtype | None = None,
    has_rope: bool = False,
) -> KernelSpec:
    dtype_kv = dtype_kv or dtype
    shape = kernel_shape(head_dim, value_dim, dtype_kv.itemsize, has_wide, 90, has_rope)
    source = variant_source(variants)
    return attention_spec(dtype, dtype_kv, dtype, head_dim, value_dim, has_wide, shape, source, has_rope)


_NO_VARIANT = variant_source(())
_HOPPER = (
    hopper_spec(_BF16, _BF16, 128, 128, 16, _NO_VARIANT),
    hopper_spec(_FP16, _FP16, 64, 64, 0, variant_source((SOFT_CAP,))),
)
_HOPPER_HEADS = ((96, 96), (192, 128))
# Types of queries and outputs, and of keys and values; heads; size of pages; whether tiles are large.
_DECODES = (
    (_BF16, _BF16, (128, 128), 16, False),
    (_BF16, _BF16, (128, 128), 16, True),
    (_FP16, _FP16, (64, 64), 0, False),
    (_FP16, _FP16, (64, 64), 0, True),
    (_BF16, _BF16, (256, 256), 64, False),
    (_BF16, _E4M3, (128, 128), 16, False),
    (_BF16, _E4M3, (128, 128), 16, True),
    (_FP16, _E5M2, (128, 128), 32, False),
    (_BF16, _E4M3, (256, 256), 16, False),
)
_HAS_CUTLASS = not any(library.why_missing() for library in LIBRARIES)

SHIPPED = [
    SCHEDULE_SPEC,
    *(_attention(_BF16, *heads) for heads in _HEADS),
    *(_attention(_FP16, 128, 128, has_wide) for has_wide in (False, True)),
    _attention(_BF16, 128, 128, False, dtype_kv=_E4M3),
    _attention(_FP16, 64, 64, True, dtype_kv=_E5M2),
    *_HOPPER,
    *(hopper_spec(_BF16, _BF16, *heads, 16, _NO_VARIANT) for heads in _HOPPER_HEADS),
    *(hopper_spec(_E4M3, _BF16, dim, dim, 16, _NO_VARIANT) for dim in (64, 128)),
    *(
        decode_spec((dtype, dtype_kv, dtype), dims, is_wide, page_size, _NO_VARIANT)
        for dtype, dtype_kv, dims, page_size, is_wide in _DECODES
    ),
    decode_spec((_BF16, _BF16, _BF16), (128, 128), False, 16, variant_source((SOFT_CAP,))),
    *(cutlass_spec(spec) for spec in _HOPPER if _HAS_CUTLASS),
    *(_attention(_BF16, 128, 128, True, variant) for variant in (SOFT_CAP, ALIBI, PACKED_MASK)),
    *(_attention(_BF16, *heads, has_rope=True) for heads in _HEADS_WITH_ROPE),
    _attention(_FP16, 128, 128, True, SOFT_CAP, has_rope=True),
    _attention(_BF16, 128, 128, False, dtype_kv=_E4M3, has_rope=True),
    _attention(_FP16, 256, 256, False, PACKED_MASK, dtype_kv=_E5M2, has_rope=True),
    *(copy_spec(nbytes) for nbytes in (16, 8, 4, 2, 1)),
    *(convert_spec(dtype, cache, 8) for dtype in (_BF16, _FP16) for cache in (_E4M3, _E5M2)),
    *(convert_spec(_FP32, cache, 4) for cache in (_BF16, _FP16, _E4M3, _E5M2)),
    *(convert_spec(dtype, _E4M3, 1) for dtype in (_BF16, _FP16)),
    BATCH_INDICES_POSITIONS_SPEC,
    SEQ_LENS_SPEC,
    *(rope_spec(dtype, torch.int32, _FP32, interleave, 8) for dtype in (_BF16, _FP16) for interleave in (False, True)),
    *(packbits_spec(dtype) for dtype in (torch.int32, torch.int64)),
    rope_spec(_FP32, torch.int64, _FP32, False, 4),
    *(rope_spec(_BF16, torch.int64, _BF16, interleave, 1) for interleave in (False, True)),
    *(rope_append_spec(_BF16, cache, False, 8, 8) for cache in (_BF16, _E4M3)),
    rope_append_spec(_FP16, _E5M2, True, 8, 8),
    rope_append_spec(_FP32, _BF16, False, 4, 1),
    *(merge_state_spec(*merge) for merge in (*_MERGES, *_UNALIGNED_MERGES)),
    *(merge_states_spec(*merge) for merge in (*_MERGES, *_UNALIGNED_MERGES)),
]
