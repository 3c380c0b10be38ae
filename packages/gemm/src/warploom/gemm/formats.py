"""Element types of the products, and the output that they write."""

from __future__ import annotations

from typing import NamedTuple

import torch

from warploom.core.errors import ArgumentError
from warploom.core.tensors import Checker, as_dtype, have_unit_strides

__all__ = ["ACTIVATIONS", "FLOAT_DTYPES", "FP8_DTYPES", "HALF_DTYPES", "OUT_DTYPES", "Output"]
__all__ += ["check_activation", "check_out_dtype", "check_output", "is_dense"]

FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
HALF_DTYPES = (torch.bfloat16, torch.float16)
FLOAT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
OUT_DTYPES = (*FLOAT_DTYPES, torch.float8_e4m3fn)
ACTIVATIONS = ("relu", "gelu", "silu")


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether rows are contiguous and do not overlap, which is what every kernel may write to."""
    rows_apart = tensor.dim() < 2 or tensor.shape[-2] <= 1 or tensor.stride(-2) >= tensor.shape[-1]
    return rows_apart and have_unit_strides(tensor)


def check_out_dtype(
    check: Checker, name: str, dtype: torch.dtype, dtypes: tuple[torch.dtype, ...] = FLOAT_DTYPES
) -> None:
    if dtype not in dtypes:
        *first, last = (str(one).removeprefix("torch.") for one in dtypes)
        raise ArgumentError.of(check.op, name, f"{', '.join(first)} or {last}", str(dtype).removeprefix("torch."))


def check_activation(check: Checker, activation: str | None) -> str:
    """The name of an activation, "" for none."""
    if activation is not None and activation not in ACTIVATIONS:
        expected = f"None or one of {', '.join(map(repr, ACTIVATIONS))}"
        raise ArgumentError.of(check.op, "activation", expected, repr(activation))
    return activation or ""


class Output(NamedTuple):
    """Shape and dtype of what a call writes."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def tensor(self, given: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
        """The caller's tensor, or a new one on the device of another."""
        return like.new_empty(self.shape, dtype=self.dtype) if given is None else given


def check_output(
    check: Checker,
    out: torch.Tensor | None,
    shape: tuple[int, ...],
    out_dtype: torch.dtype | str | None,
    default: torch.dtype,
    dtypes: tuple[torch.dtype, ...] = FLOAT_DTYPES,
) -> Output:
    """Check the caller's output if there is one. Without `out_dtype` its own dtype decides, else `default`."""
    if out_dtype is not None:
        dtype = as_dtype(out_dtype, check.op, "out_dtype")
    else:
        dtype = default if out is None else out.dtype
    check_out_dtype(check, "out_dtype" if out_dtype is not None or out is None else "out", dtype, dtypes)
    if out is not None and not is_dense(check.output("out", out, shape, dtype)):
        expected = "made of contiguous rows that do not overlap"
        raise ArgumentError.of(check.op, "out", expected, f"strides {out.stride()}")
    return Output(shape, dtype)
