"""Per-row parameters (temperature, top_k, top_p, min_p): a scalar for all rows, or a tensor with one value a row."""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from warploom.core.errors import ArgumentError
from warploom.core.tensors import Checker, as_tensor

__all__ = [
    "FILTER_SCHEMA",
    "FLOAT_TYPES",
    "FilterParameters",
    "RowParameter",
    "float_parameter",
    "int_parameter",
    "is_number",
    "row_tensor",
    "source_tensor",
    "temperature_parameter",
]

# `FilterParameters` as a torch operator takes them.
FILTER_SCHEMA = (
    "Tensor? temperature, float temperature_value, Tensor? top_k, int top_k_value, "
    "Tensor? top_p, float top_p_value, Tensor? min_p, float min_p_value"
)

FLOAT_TYPES = (torch.float32, torch.float16, torch.bfloat16)
_ALL_FLOATS = (*FLOAT_TYPES, torch.float64)
_INT_TYPES = (torch.int32, torch.int64)
_INT32_MAX = 2**31 - 1

# Tensors of other libraries are taken through DLPack too.
FloatLike = float | torch.Tensor
IntLike = int | torch.Tensor


class RowParameter(NamedTuple):
    """A value for every row: `tensor` ``[rows]`` (float32 or int32, any stride) if there is one, else `value`."""

    tensor: torch.Tensor | None
    value: float

    def column(self, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The values as ``[rows, 1]``, rows as in `like`."""
        if self.tensor is None:
            return torch.full((like.shape[0], 1), self.value, dtype=dtype, device=like.device)
        return self.tensor.to(dtype).unsqueeze(1)


def source_tensor(check: Checker, name: str, value: Any) -> torch.Tensor:
    """Check logits or probabilities ``[batch, vocab]``; any strides."""
    tensor = check.tensor(name, value, "batch vocab", dtype=FLOAT_TYPES)
    if tensor.shape[1] < 1:
        raise ArgumentError.of(check.op, name, "of a vocabulary of 1 or more", f"shape {tuple(tensor.shape)}")
    return tensor


def float_parameter(check: Checker, name: str, value: FloatLike, rows: int) -> RowParameter:
    """Check a real parameter. Tensors of one element serve all rows without a host copy."""
    if is_number(value, numbers.Real):
        return RowParameter(None, float(value))
    tensor = row_tensor(check, name, value, rows, _ALL_FLOATS)
    return RowParameter(_one_a_row(tensor.to(torch.float32), rows), 0.0)


def temperature_parameter(check: Checker, value: FloatLike | None, rows: int) -> RowParameter:
    """Check a temperature; None stands for 1."""
    return float_parameter(check, "temperature", 1.0 if value is None else value, rows)


def int_parameter(check: Checker, name: str, value: IntLike, rows: int) -> RowParameter:
    """Check an integer parameter; values beyond int32 are clamped into it."""
    if is_number(value, numbers.Integral):
        return RowParameter(None, min(max(int(value), -1), _INT32_MAX))
    tensor = row_tensor(check, name, value, rows, _INT_TYPES)
    if tensor.dtype == torch.int64:
        tensor = tensor.clamp(-1, _INT32_MAX).to(torch.int32)
    return RowParameter(_one_a_row(tensor, rows), 0)


def _one_a_row(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    return tensor if tensor.shape == (rows,) else tensor.reshape(-1).expand(rows)


def is_number(value: Any, kind: type) -> bool:
    """Whether `value` is a number of `kind` (of the abstract classes in `numbers`) and neither a tensor nor a bool."""
    if isinstance(value, (torch.Tensor, bool)):
        return False
    # Instance checks against abstract classes are slow, and this is in the path of every call.
    return isinstance(value, int) or (isinstance(value, float) and kind is numbers.Real) or isinstance(value, kind)


def row_tensor(check: Checker, name: str, value: Any, rows: int, dtypes: tuple[torch.dtype, ...]) -> torch.Tensor:
    """Check a tensor with one value for all rows (0-D or ``[1]``) or one a row."""
    if isinstance(value, numbers.Number):
        kind = "a number" if dtypes[0].is_floating_point else "an integer"
        raise ArgumentError.of(check.op, name, f"{kind} or a tensor", repr(value))
    tensor = as_tensor(value, check.op, name)
    size = tensor.numel()  # compared one by one: torch.compile does not trace `in` of symbolic sizes
    if tensor.dim() > 1 or (size != 1 and size != rows):
        expected = f"a number or a tensor [1] or [{rows}]"
        raise ArgumentError.of(check.op, name, expected, f"a tensor of shape {tuple(tensor.shape)}")
    return check.tensor(name, tensor, "_" if tensor.dim() else "", dtype=dtypes)


@dataclass(frozen=True)
class FilterParameters:
    """The parameters of a filter chain; those of absent steps are neutral."""

    temperature: RowParameter
    top_k: RowParameter
    top_p: RowParameter
    min_p: RowParameter

    @classmethod
    def of(
        cls,
        check: Checker,
        rows: int,
        *,
        temperature: FloatLike | None = None,
        top_k: IntLike = 0,
        top_p: FloatLike = 1.0,
        min_p: FloatLike = 0.0,
    ) -> FilterParameters:
        """Check the given parameters."""
        return cls(
            temperature_parameter(check, temperature, rows),
            int_parameter(check, "top_k", top_k, rows),
            float_parameter(check, "top_p", top_p, rows),
            float_parameter(check, "min_p", min_p, rows),
        )

    def flat(self) -> tuple[Any, ...]:
        """The values as a torch operator takes them, in the order of `FILTER_SCHEMA`."""
        return (*self.temperature, *self.top_k, *self.top_p, *self.min_p)

    @classmethod
    def from_flat(cls, *values: Any) -> FilterParameters:
        """The inverse of `flat`."""
        return cls(*(RowParameter(*values[i : i + 2]) for i in (0, 2, 4, 6)))
