"""What all quantisers check, allocate and lay out: fp8 values with their scales, and rows as the kernels read them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from warploom.core.errors import ArgumentError
from warploom.core.tensors import Checker, as_dtype, have_unit_strides
from warploom.gemm.formats import FP8_DTYPES, Output
from warploom.gemm.scales import ceil_div

__all__ = [
    "TMA_FLOATS",
    "QuantOutputs",
    "ScaleOutput",
    "as_batch",
    "check_eps",
    "check_fp8_output",
    "check_given_scale",
    "check_group_size",
    "check_scale_output",
    "rows_aligned",
    "writes_aligned",
]

TMA_FLOATS = 4  # a TMA stride is a multiple of 16 bytes
_SMALLEST_EPS = 1e-30  # limit / eps must stay finite in float32
_VECTOR_BYTES = 16


def check_eps(check: Checker, eps: float) -> None:
    if not eps >= _SMALLEST_EPS:  # NaN is refused too
        raise ArgumentError.of(check.op, "eps", f"at least {_SMALLEST_EPS}", repr(eps))


def check_group_size(check: Checker, group_size: Any) -> None:
    if not isinstance(group_size, int) or group_size <= 0:
        raise ArgumentError.of(check.op, "group_size", "a positive integer", repr(group_size))


class ScaleOutput(NamedTuple):
    """How the scales that a call computes lie: column-major ones have a stride padded to a multiple of `padding`."""

    shape: tuple[int, ...]
    column_major: bool
    padding: int

    def tensor(self, given: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
        """The caller's tensor, or a new one on the device of another."""
        if given is not None:
            return given
        if not self.column_major:
            return like.new_empty(self.shape, dtype=torch.float32)
        *lead, rows, columns = self.shape
        padded = ceil_div(rows, self.padding) * self.padding
        return like.new_empty((*lead, columns, padded), dtype=torch.float32)[..., :rows].mT


class QuantOutputs(NamedTuple):
    """What a quantiser returns: values and scales."""

    values: Output
    scales: ScaleOutput

    def tensors(
        self, out: torch.Tensor | None, scale: torch.Tensor | None, like: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Those of the caller, or new ones on the device of another."""
        return self.values.tensor(out, like), self.scales.tensor(scale, like)


def check_fp8_output(check: Checker, shape: tuple[int, ...], out: Any, dtype: torch.dtype | str) -> Output:
    """Check the caller's quantised tensor, if there is one."""
    dtype = as_dtype(dtype, check.op, "dtype")
    if dtype not in FP8_DTYPES:
        raise ArgumentError.of(check.op, "dtype", "float8_e4m3fn or float8_e5m2", str(dtype).removeprefix("torch."))
    if out is not None:
        check.output("out", out, shape, dtype, contiguous="all")
    return Output(shape, dtype)


def check_scale_output(
    check: Checker, out_scale: Any, shape: tuple[int, ...], column_major: bool, padding: int
) -> ScaleOutput:
    """Check the caller's scale tensor, if there is one."""
    if out_scale is not None:
        scale = check.output("out_scale", out_scale, shape, torch.float32)
        if scale.dim() > 3 and not scale.is_contiguous():
            expected = "contiguous when it has several batch dimensions"
            raise ArgumentError.of(check.op, "out_scale", expected, f"strides {scale.stride()}")
    return ScaleOutput(shape, column_major, padding)


def check_given_scale(check: Checker, scale: Any, out_scale: Any) -> ScaleOutput:
    """Check the caller's one (static) scale."""
    check.require(out_scale is None, "out_scale", "None when `scale` is given", "both")
    scale = check.tensor("scale", scale, "*one", dtype=torch.float32)
    if scale.numel() != 1:
        raise ArgumentError.of(check.op, "scale", "one float32", f"shape {tuple(scale.shape)}")
    return ScaleOutput((1,), False, 1)


def as_batch(x: torch.Tensor) -> torch.Tensor:
    """``[batch, rows, columns]`` of 1-D and larger tensors; a view where the strides of the batch allow it."""
    if x.dim() == 3:
        return x
    return x[(None,) * (3 - x.dim())] if x.dim() < 3 else x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:])


def rows_aligned(x: torch.Tensor) -> bool:
    """Whether rows can be read as 16-byte vectors."""
    width = _VECTOR_BYTES // x.element_size()
    strides_aligned = all(
        size <= 1 or stride % width == 0 for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True)
    )
    return have_unit_strides(x) and strides_aligned and x.data_ptr() % _VECTOR_BYTES == 0


def writes_aligned(q: torch.Tensor, x: torch.Tensor) -> bool:
    """Whether the elements of a 16-byte vector of `x` can be written as one vector of fp8."""
    return q.data_ptr() % (_VECTOR_BYTES // x.element_size()) == 0
