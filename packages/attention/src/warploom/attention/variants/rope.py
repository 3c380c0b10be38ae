"""Rotary positions applied to queries and keys on their way into the product (`pos_encoding_mode="ROPE_LLAMA"`)."""

from __future__ import annotations

from typing import Any

import torch

from warploom.attention.backends.reference.rotation import cos_sin, frequencies, rotate
from warploom.attention.variants.base import BuiltinVariant


def _rotate_inputs(q: torch.Tensor, k: torch.Tensor, at: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate queries by their position among the keys and keys by theirs; pairs are (i, i + head_dim / 2)."""
    freqs = frequencies(q.shape[-1], at.rope_scale, at.rope_theta, q.device).to(
        torch.promote_types(q.dtype, torch.float32)
    )

    def rotated(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        cos, sin = cos_sin(positions.reshape(-1), freqs)
        return rotate(x, cos.unsqueeze(1), sin.unsqueeze(1))

    return rotated(q, at.qo_pos), rotated(k, at.kv_idx)


ROPE = BuiltinVariant(
    name="rope",
    scalars={"rope_scale": float, "rope_theta": float},
    reference_inputs=_rotate_inputs,
    active=lambda problem: problem.pos_encoding == "ROPE_LLAMA",
    values=lambda plan, call, batch_idx: {"rope_scale": plan.options.rope_scale, "rope_theta": plan.options.rope_theta},
    example=lambda num_qo_heads, qo_lens, kv_lens: {
        "pos_encoding_mode": "ROPE_LLAMA",
        "rope_scale": 2.0,
        "rope_theta": 5e3,
    },
)
