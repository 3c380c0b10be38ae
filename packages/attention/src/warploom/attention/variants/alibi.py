"""Linear biases by distance (`pos_encoding_mode="ALIBI"`): Press et al., 2021 (arXiv:2108.12409)."""

from __future__ import annotations

import math

import torch

from warploom.attention.variants.base import BuiltinVariant


def default_slopes(num_qo_heads: int) -> list[float]:
    """The paper's slopes `2 ** (-8 i / n)`; for other than powers of two, interleaved with those of the next power.

    Examples
    --------
    >>> default_slopes(2)
    [0.0625, 0.00390625]
    """
    whole = 1 << int(math.log2(num_qo_heads))
    slopes = [2.0 ** (-8.0 * (head + 1) / whole) for head in range(whole)]
    between = [2.0 ** (-4.0 * (2 * head + 1) / whole) for head in range(num_qo_heads - whole)]
    return slopes + between


ALIBI = BuiltinVariant(
    name="alibi",
    logits="logits + alibi_slopes[qo_head_idx] * (kv_idx - qo_pos)",
    tensors={"alibi_slopes": torch.float32},
    reference_logits=lambda logits, at: logits + at.alibi_slopes[at.qo_head_idx] * (at.kv_idx - at.qo_pos),
    active=lambda problem: problem.pos_encoding == "ALIBI",
    values=lambda plan, call, batch_idx: {"alibi_slopes": plan.alibi_slopes},
    example=lambda num_qo_heads, qo_lens, kv_lens: {"pos_encoding_mode": "ALIBI"},
)
