"""Queries see the `window_left` keys before their own and none that are older (`window_left >= 0`)."""

from __future__ import annotations

from warploom.attention.variants.base import BuiltinVariant

SLIDING_WINDOW = BuiltinVariant(
    name="sliding_window",
    mask="kv_idx + window_left >= qo_pos",
    scalars={"window_left": int},
    reference_mask=lambda at: at.kv_idx + at.window_left >= at.qo_pos,
    active=lambda problem: problem.sliding_window,
    values=lambda plan, call, batch_idx: {"window_left": plan.options.window_left},
    example=lambda num_qo_heads, qo_lens, kv_lens: {"window_left": 3, "causal": True},
)
