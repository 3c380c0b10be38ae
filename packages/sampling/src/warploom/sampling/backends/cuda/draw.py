"""The parameters of `draw.cuh`, which all drawing kernels share, and parts of them that others have too."""

from __future__ import annotations

import functools
from typing import Any

import torch

from warploom.core.jit import ParamStruct, f32, i32, i64, ptr
from warploom.sampling.parameters import FilterParameters, RowParameter
from warploom.sampling.randomness import RandomState
from warploom.sampling.steps import Steps

__all__ = ["DrawParams", "draw_params", "filter_bits", "filter_params", "parameter_fields", "random_fields"]

_BITS = {"top_k": 1, "top_p": 2, "min_p": 4}  # `Filter` in draw.cuh
_BEFORE_TOP_P = {"top_k": 8, "min_p": 16}


class DrawParams(ParamStruct):
    cpp_name = "warploom::sampling::DrawParams"
    source: ptr
    indices: ptr
    tokens: ptr
    valid: ptr
    probs: ptr
    temperature: ptr
    top_k: ptr
    top_p: ptr
    min_p: ptr
    seed: ptr
    offset: ptr
    source_stride: i64
    token_stride: i64
    indices_stride: i64
    tokens_stride: i64
    probs_stride: i64
    prob_stride: i64
    temperature_stride: i64
    top_k_stride: i64
    top_p_stride: i64
    min_p_stride: i64
    seed_stride: i64
    offset_stride: i64
    seed_value: i64
    offset_value: i64
    temperature_value: f32
    top_k_value: i32
    top_p_value: f32
    min_p_value: f32
    vocab: i32
    source_rows: i32
    rows: i32
    indices_are_64_bit: i32
    rows_have_seeds: i32
    filters: i32
    only_pending: i32


def _of_rows(name: str, tensor: torch.Tensor | None, value: float) -> dict[str, Any]:
    """The fields of what has one value a row, or one for all, in a tensor or as a number: `of_row` in draw.cuh."""
    stride = 0 if tensor is None or tensor.numel() == 1 else tensor.stride(0)
    return {name: tensor, f"{name}_stride": stride, f"{name}_value": value}


def parameter_fields(name: str, parameter: RowParameter) -> dict[str, Any]:
    """The fields of a parameter."""
    return _of_rows(name, *parameter)


def random_fields(random: RandomState) -> dict[str, Any]:
    """The fields about random numbers."""
    fields = _of_rows("seed", random.seed, random.seed_value) | _of_rows("offset", random.offset, random.offset_value)
    return fields | {"rows_have_seeds": random.per_row_seed}


def filter_params(source: torch.Tensor, probs: torch.Tensor | None, parameters: FilterParameters) -> dict[str, Any]:
    """The fields about rows and filters, and what distributions are written to."""
    fields: dict[str, Any] = dict.fromkeys(DrawParams.__annotations__, 0)
    fields |= {
        "source": source,
        "probs": probs,
        "source_stride": source.stride(0),
        "token_stride": source.stride(1),
        "probs_stride": 0 if probs is None else probs.stride(0),
        "prob_stride": 0 if probs is None else probs.stride(1),
        "vocab": source.shape[1],
        "source_rows": source.shape[0],
    }
    for name in ("temperature", "top_k", "top_p", "min_p"):
        fields |= parameter_fields(name, getattr(parameters, name))
    del fields["filters"]
    return fields


def draw_params(
    tokens: torch.Tensor,
    valid: torch.Tensor,
    source: torch.Tensor,
    indices: torch.Tensor | None,
    parameters: FilterParameters,
    random: RandomState,
    filters: int,
) -> DrawParams:
    """The struct of one draw."""
    fields = (
        filter_params(source, None, parameters)
        | random_fields(random)
        | {
            "filters": filters,
            "indices": indices,
            "rows": tokens.shape[0],
            "tokens": tokens,
            "valid": valid,
            "indices_stride": 0 if indices is None else indices.stride(0),
            "tokens_stride": tokens.stride(0),
            "indices_are_64_bit": indices is not None and indices.dtype == torch.int64,
        }
    )
    return DrawParams(**fields)


@functools.cache
def filter_bits(steps: Steps) -> int:
    """The filters of a chain, and what stands before its top-p, as the kernels take them.

    Examples
    --------
    >>> filter_bits(("softmax",)), filter_bits(("top_k", "softmax", "top_p")), filter_bits(("top_p", "top_k"))
    (0, 11, 3)
    """
    bits = sum(bit for step, bit in _BITS.items() if step in steps)
    before = steps[: steps.index("top_p")] if "top_p" in steps else ()
    return bits + sum(bit for step, bit in _BEFORE_TOP_P.items() if step in before)
