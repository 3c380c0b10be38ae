"""Reductions whose result does not depend on who computes them: float32, in rank order, rounded once."""

from __future__ import annotations

import torch

__all__ = ["REDUCE_DTYPES", "REDUCE_OPS", "reduce_in_rank_order"]

REDUCE_OPS = ("sum", "avg", "max", "min")
REDUCE_DTYPES = (
    torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.int64, torch.int8, torch.uint8,
)  # fmt: skip

_ACCUMULATE_IN = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


def reduce_in_rank_order(stack: torch.Tensor, op: str) -> torch.Tensor:
    """Reduce ``stack [ranks, ...]`` over its first dimension.

    Parameters
    ----------
    stack : torch.Tensor
        One message per rank, in rank order. 16-bit floats accumulate in float32, other types in themselves.
    op : str
        ``"sum"``, ``"avg"``, ``"max"`` or ``"min"``; the last two hand NaN on.
    """
    total = stack[0].to(_ACCUMULATE_IN.get(stack.dtype, stack.dtype), copy=True)
    for message in stack[1:]:
        if op == "max":
            torch.maximum(total, message.to(total.dtype), out=total)
        elif op == "min":
            torch.minimum(total, message.to(total.dtype), out=total)
        else:
            total += message
    if op == "avg":
        total = total / stack.shape[0]
    return total.to(stack.dtype)
