"""Variants of attention, one file each. Adding one is a file and a line here; tests and benchmarks iterate this list."""

from warploom.attention.variants.alibi import ALIBI
from warploom.attention.variants.base import AttentionVariant, BuiltinVariant, LogitsContext, variant_of
from warploom.attention.variants.causal import CAUSAL
from warploom.attention.variants.custom_mask import DENSE_MASK, PACKED_MASK
from warploom.attention.variants.rope import ROPE
from warploom.attention.variants.sinks import SINKS
from warploom.attention.variants.sliding_window import SLIDING_WINDOW
from warploom.attention.variants.soft_cap import SOFT_CAP

__all__ = ["BUILTIN_VARIANTS", "AttentionVariant", "BuiltinVariant", "LogitsContext", "variant_of"]

# In the order in which they apply: inputs, logits (a bias is capped with the rest), masks, outputs. A user's own
# variant comes after the built-in logits and masks.
BUILTIN_VARIANTS: tuple[BuiltinVariant, ...] = (
    ROPE,
    ALIBI,
    SOFT_CAP,
    CAUSAL,
    SLIDING_WINDOW,
    DENSE_MASK,
    PACKED_MASK,
    SINKS,
)
