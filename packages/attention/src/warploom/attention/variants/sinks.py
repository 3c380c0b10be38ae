"""Attention sinks: one more logit per query head, which takes part in the softmax but carries no value (as in GPT-OSS)."""

from __future__ import annotations

from typing import Any

import torch

from warploom.attention.variants.base import BuiltinVariant


def add_sinks(out: torch.Tensor, lse: torch.Tensor, sinks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Add the sinks to the softmax's denominator after the fact; a row that sees no key keeps 0 and -inf.

    `out` is `[rows, num_qo_heads, head_dim]`, `lse` natural `[rows, num_qo_heads]`, `sinks` `[num_qo_heads]` in the
    units of the logits.
    """
    sinks = sinks.to(lse.dtype)
    share_of_keys = torch.sigmoid(lse - sinks)
    return out * share_of_keys.unsqueeze(-1), torch.where(lse == -torch.inf, lse, torch.logaddexp(lse, sinks))


def _add(out: torch.Tensor, lse: torch.Tensor, at: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return add_sinks(out, lse, at.sinks)


SINKS = BuiltinVariant(
    name="sinks",
    tensors={"sinks": torch.float32},
    reference_output=_add,
    active=lambda problem: problem.sinks,
    values=lambda plan, call, batch_idx: {"sinks": call.sinks},
    example=lambda num_qo_heads, qo_lens, kv_lens: {"sinks": torch.linspace(-1.0, 2.0, num_qo_heads)},
)
