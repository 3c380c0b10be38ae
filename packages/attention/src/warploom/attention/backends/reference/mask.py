"""Bit packing in plain torch. Bytes are built bit by bit, so that memory stays at a few index words per output byte."""

from __future__ import annotations

import torch

from warploom.attention.backends.reference.ragged import request_of_row
from warploom.attention.problems.mask import PackProblem
from warploom.core.backends import Backend, Support

_BYTE = 8


class ReferencePackbits(Backend):
    name = "reference"

    def supports(self, problem: PackProblem) -> Support:
        return Support()

    def run(
        self,
        problem: PackProblem,
        packed: torch.Tensor,  # bytes; those that no segment needs become 0
        x: torch.Tensor,
        indptr: torch.Tensor | None,
        packed_indptr: torch.Tensor | None,
    ) -> None:
        if indptr is None or packed_indptr is None:
            start = torch.arange(packed.shape[0], device=x.device) * _BYTE
            end = torch.full_like(start, x.shape[0])
        else:
            start, end = _segment_bits(packed.shape[0], indptr, packed_indptr)
        packed.copy_(_pack(x, start, end, problem.bitorder))


def _segment_bits(
    num_bytes: int, indptr: torch.Tensor, packed_indptr: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """For every byte, its first bit in `x` and the end of its segment; an empty range beyond the last segment."""
    segment, byte = request_of_row(packed_indptr, num_bytes)
    if indptr.shape[0] == 1:
        return byte, byte
    owner = segment.clamp(min=0)
    start = indptr.long()[owner] + byte * _BYTE
    return start, torch.where(segment >= 0, indptr.long()[owner + 1], start)


def _pack(x: torch.Tensor, start: torch.Tensor, end: torch.Tensor, bitorder: str) -> torch.Tensor:
    packed = torch.zeros_like(start, dtype=torch.uint8)
    if x.shape[0] == 0:
        return packed
    flags = x != 0
    for bit in range(_BYTE):
        position = start + bit
        on = (position < end) & flags[position.clamp(max=x.shape[0] - 1)]
        shift = _BYTE - 1 - bit if bitorder == "big" else bit
        packed |= on.to(torch.uint8) << shift
    return packed
