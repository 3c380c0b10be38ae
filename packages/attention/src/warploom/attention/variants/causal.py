"""Queries see no later key; they are the tail of the keys, so the mask is aligned to the bottom right (`causal=True`)."""

from __future__ import annotations

from warploom.attention.variants.base import BuiltinVariant

CAUSAL = BuiltinVariant(
    name="causal",
    mask="kv_idx <= qo_pos",
    reference_mask=lambda at: at.kv_idx <= at.qo_pos,
    active=lambda problem: problem.causal,
    example=lambda num_qo_heads, qo_lens, kv_lens: {"causal": True},
)
