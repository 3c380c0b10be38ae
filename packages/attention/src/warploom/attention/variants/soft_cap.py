"""Logits kept within +-cap by a hyperbolic tangent (`logits_soft_cap`), as in Gemma 2 and Grok."""

from __future__ import annotations

from warploom.attention.variants.base import BuiltinVariant

SOFT_CAP = BuiltinVariant(
    name="soft_cap",
    logits="soft_cap * tanh_approx(logits * inverse_soft_cap)",
    scalars={"soft_cap": float, "inverse_soft_cap": float},
    reference_logits=lambda logits, at: at.soft_cap * (logits / at.soft_cap).tanh(),
    active=lambda problem: problem.soft_cap,
    values=lambda plan, call, batch_idx: {
        "soft_cap": plan.options.logits_soft_cap,
        "inverse_soft_cap": 1.0 / plan.options.logits_soft_cap,
    },
    example=lambda num_qo_heads, qo_lens, kv_lens: {"logits_soft_cap": 2.5},
)
