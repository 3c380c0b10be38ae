"""How the references end: activation, and one rounding into the output."""

from __future__ import annotations

import torch

from warploom.gemm.backends.reference.quantize import cast

__all__ = ["finish"]

_ACTIVATIONS = {
    "": lambda x: x,
    "relu": torch.nn.functional.relu,
    "gelu": torch.nn.functional.gelu,
    "silu": torch.nn.functional.silu,
}


def finish(out: torch.Tensor, values: torch.Tensor, activation: str = "") -> None:
    """Write float32 values; those that an fp8 output has no room for become its largest."""
    values = _ACTIVATIONS[activation](values)
    if out.dtype == torch.float8_e4m3fn:
        values = cast(values, torch.ones((), device=values.device), out.dtype)
    out.copy_(values)
