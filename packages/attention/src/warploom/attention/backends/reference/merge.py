"""Merging attention states in plain torch."""

from __future__ import annotations

import math

import torch

from warploom.attention.problems.merge import MergeProblem
from warploom.core.backends import Backend, Support


class ReferenceMergeState(Backend):
    name = "reference"

    def supports(self, problem: MergeProblem) -> Support:
        return Support()

    def run(
        self,
        problem: MergeProblem,
        out: torch.Tensor,  # [rows, heads, dim]; may be v_a
        lse: torch.Tensor,  # [rows, heads]; may be s_a
        v_a: torch.Tensor,
        s_a: torch.Tensor,
        v_b: torch.Tensor,
        s_b: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> None:
        value, total = merge(torch.stack((v_a, v_b), 1), torch.stack((s_a, s_b), 1), problem.lse_base)
        if mask is not None:
            value = torch.where(mask[:, None, None], value, out.to(value.dtype))
            total = torch.where(mask[:, None], total, lse)
        out.copy_(value)
        lse.copy_(total)


class ReferenceMergeStates(Backend):
    name = "reference"

    def supports(self, problem: MergeProblem) -> Support:
        return Support()

    def run(
        self, problem: MergeProblem, out: torch.Tensor, lse: torch.Tensor, v: torch.Tensor, s: torch.Tensor
    ) -> None:
        value, total = merge(v, s, problem.lse_base)
        out.copy_(value)
        lse.copy_(total)


def merge(v: torch.Tensor, s: torch.Tensor, lse_base: str = "log2") -> tuple[torch.Tensor, torch.Tensor]:
    """Merge states along dimension 1.

    Parameters
    ----------
    v : torch.Tensor
        `[rows, states, heads, dim]`; computed in float32, or float64 for float64.
    s : torch.Tensor
        `[rows, states, heads]`, log-sum-exps to the base `lse_base`.

    Returns
    -------
    tuple of torch.Tensor
        `[rows, heads, dim]` and `[rows, heads]` in the dtype of the computation.
    """
    v = v.to(torch.promote_types(v.dtype, torch.float32))
    s = s.to(v.dtype)
    if s.shape[1] == 0:
        return v.new_zeros(v.shape[:1] + v.shape[2:]), s.new_full(s.shape[:1] + s.shape[2:], -math.inf)
    exp, log = (torch.exp2, torch.log2) if lse_base == "log2" else (torch.exp, torch.log)
    largest = s.amax(1)
    shift = torch.where(largest == -math.inf, 0.0, largest)
    weights = exp(s - shift[:, None])
    total = weights.sum(1)
    # A state that saw no key is left out by its log-sum-exp alone: its v may be uninitialised memory.
    seen = torch.where((s == -math.inf)[..., None], 0.0, v)
    value = (weights[..., None] * seen).sum(1) / torch.where(total == 0, 1.0, total)[..., None]
    return value, log(total) + shift
