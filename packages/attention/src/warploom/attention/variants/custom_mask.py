"""A mask given by the caller, query-major per request: booleans, or bits packed from the lowest of each byte up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from warploom.attention.variants.base import BuiltinVariant


def _element(at: Any) -> torch.Tensor:
    return at.qo_idx * at.kv_len + at.kv_idx


def _unpacked(at: Any) -> torch.Tensor:
    element = _element(at)
    byte = at.packed_custom_mask[at.mask_start + (element >> 3)]
    return (byte >> (element & 7).to(torch.uint8)) & 1 != 0


def _values(name: str) -> Any:
    def values(plan: Any, call: Any, batch_idx: int | None) -> dict[str, Any]:
        start = {} if batch_idx is None else {"mask_start": plan.tables.on_host().mask_indptr[batch_idx]}
        return {name: plan.tables.mask, **start}

    return values


def _products(qo_lens: Sequence[int], kv_lens: Sequence[int]) -> list[int]:
    return [qo_len * kv_len for qo_len, kv_len in zip(qo_lens, kv_lens, strict=True)]


def _random_bytes(counts: list[int]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(counts))
    return torch.randint(0, 256, (sum(counts),), dtype=torch.uint8, generator=generator)


_START = {"mask_start": "params.mask_indptr[batch_idx]"}

DENSE_MASK = BuiltinVariant(
    name="dense_custom_mask",
    mask="custom_mask[mask_start + qo_idx * kv_len + kv_idx]",
    tensors={"custom_mask": torch.bool},
    scalars={"mask_start": int},
    of_request=_START,
    reference_mask=lambda at: at.custom_mask[at.mask_start + _element(at)],
    active=lambda problem: problem.mask == "dense",
    values=_values("custom_mask"),
    example=lambda num_qo_heads, qo_lens, kv_lens: {"custom_mask": _random_bytes(_products(qo_lens, kv_lens)) > 127},
)

PACKED_MASK = BuiltinVariant(
    name="packed_custom_mask",
    mask="(packed_custom_mask[mask_start + ((qo_idx * kv_len + kv_idx) >> 3)] >> ((qo_idx * kv_len + kv_idx) & 7)) & 1",
    tensors={"packed_custom_mask": torch.uint8},
    scalars={"mask_start": int},
    of_request=_START,
    reference_mask=_unpacked,
    active=lambda problem: problem.mask == "packed",
    values=_values("packed_custom_mask"),
    example=lambda num_qo_heads, qo_lens, kv_lens: {
        "packed_custom_mask": _random_bytes([-(-count // 8) for count in _products(qo_lens, kv_lens)])
    },
)
