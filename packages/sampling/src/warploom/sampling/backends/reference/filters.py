"""The filters of a chain: which tokens stay, and what they weigh.

`warploom.sampling.steps` has the definition. This reference sorts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from warploom.sampling.backends.reference.softmax import exponent_scale
from warploom.sampling.parameters import FilterParameters
from warploom.sampling.steps import LARGEST_PROB, SOFTMAX, UNIT_BITS, Steps

__all__ = ["Chain", "apply_steps", "filter_rows", "mask_top_k"]


class Weighted(NamedTuple):
    """Rows with their weights."""

    values: torch.Tensor  # [rows, vocab], float32: what filters compare
    weights: torch.Tensor  # [rows, vocab], float64; 0 in bad rows
    units: torch.Tensor  # [rows, vocab], int64: what masses are sums of
    bad: torch.Tensor  # [rows, 1]: no distribution


class Chain(NamedTuple):
    """What a chain leaves of rows."""

    rows: Weighted
    kept: torch.Tensor  # [rows, vocab]: at or above every threshold but that of top_p
    nucleus: torch.Tensor | None  # [rows, vocab]: at or above that of top_p
    cuts: torch.Tensor | None  # [rows, 1]: top_p is in (0, 1)


def _weigh_logits(logits: torch.Tensor, scale: torch.Tensor) -> Weighted:
    values = logits.to(torch.float32)
    top = values.amax(-1, keepdim=True)
    bad = ~torch.isfinite(top) | torch.isnan(scale)
    log2 = (values.to(torch.float64) - torch.where(bad, 0.0, top).to(torch.float64)) * scale.to(torch.float64)
    weights = torch.where(bad, 0.0, torch.exp2(log2))
    return Weighted(values, weights, (weights * 2.0**UNIT_BITS).to(torch.int64), bad)


def _power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """Float64, from its bits: `torch.ldexp` computes in float32."""
    return ((exponent.to(torch.int64) + 1023) << 52).view(torch.float64)


def _weigh_probs(probs: torch.Tensor) -> Weighted:
    values = probs.to(torch.float32)
    values = torch.where(values < 0, 0.0, values)
    top = values.amax(-1, keepdim=True)
    bad = ~((top > 0) & (top <= LARGEST_PROB))
    weights = torch.where(bad, 0.0, values.to(torch.float64))
    exponent = torch.frexp(torch.where(bad, 1.0, top)).exponent
    units = (weights * _power_of_two(UNIT_BITS - exponent)).to(torch.int64)
    return Weighted(values, weights, units, bad)


def _keep_top_k(values: torch.Tensor, top_k: torch.Tensor) -> torch.Tensor:
    """Tokens not below the k-th largest value; all of them unless ``1 <= k <= vocab``."""
    vocab = values.shape[-1]
    ordered = values.sort(dim=-1, descending=True).values
    threshold = ordered.gather(-1, (top_k - 1).clamp(0, vocab - 1))
    # "Not below" rather than "at or above": NaN stays, and is seen by what follows.
    return ~(values < threshold) | (top_k < 1) | (top_k > vocab)


def _keep_top_p(rows: Weighted, base: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Tokens at or above the largest value that together with those above it reaches `top_p` of the mass of `base`."""
    ordered, order = rows.values.sort(dim=-1, descending=True)
    mass = torch.where(base, rows.units, 0).gather(-1, order).cumsum(-1).to(torch.float64)
    reached = mass >= top_p.to(torch.float64) * mass[:, -1:]
    first = reached.to(torch.uint8).argmax(-1, keepdim=True)  # 0, the largest value, for top_p <= 0
    return (rows.values >= ordered.gather(-1, first)) | ~(top_p < 1)


def _keep_min_p(rows: Weighted, from_logits: bool, min_p: torch.Tensor) -> torch.Tensor:
    """Tokens of at least `min_p` times the largest weight; of probabilities the product is rounded to float32."""
    share = min_p.clamp(max=1.0)
    if from_logits:
        keep = rows.weights >= share.to(torch.float64)
    else:
        keep = rows.values >= rows.values.amax(-1, keepdim=True) * share
    return keep | ~(min_p > 0)


def filter_rows(source: torch.Tensor, steps: Steps, parameters: FilterParameters) -> Chain:
    """Weigh rows and find what the chain keeps. Parameters hold one value a row of `source`."""
    from_logits = SOFTMAX in steps
    if from_logits:
        rows = _weigh_logits(source, exponent_scale(parameters.temperature, source))
    else:
        rows = _weigh_probs(source)
    kept = torch.ones_like(rows.values, dtype=torch.bool)
    nucleus = cuts = None
    for step in steps:
        if step == "top_k":
            kept = kept & _keep_top_k(rows.values, parameters.top_k.column(source, torch.int64))
        elif step == "min_p":
            kept = kept & _keep_min_p(rows, from_logits, parameters.min_p.column(source, torch.float32))
        elif step == "top_p":
            top_p = parameters.top_p.column(source, torch.float32)
            nucleus, cuts = _keep_top_p(rows, kept, top_p), (top_p > 0) & (top_p < 1)
    return Chain(rows, kept, nucleus, cuts)


def mask_top_k(logits: torch.Tensor, top_k: torch.Tensor) -> torch.Tensor:
    """Logits with those below the k-th largest at −inf; a row with NaN is left alone."""
    keep = _keep_top_k(logits, top_k) | torch.isnan(logits).any(-1, keepdim=True)
    return torch.where(keep, logits, -torch.inf)


def apply_steps(source: torch.Tensor, steps: Steps, parameters: FilterParameters) -> torch.Tensor:
    """Run a chain from logits or probabilities ``[rows, vocab]`` to float32 probabilities.

    A row without mass gives zeros, one with NaN, infinities or a bad temperature NaN throughout.
    """
    rows, kept, nucleus, _ = filter_rows(source, steps, parameters)
    if nucleus is not None:
        kept = kept & nucleus
    weights = torch.where(kept, rows.weights, 0.0)
    top = rows.values.amax(-1, keepdim=True)
    empty = top == (-torch.inf if SOFTMAX in steps else 0.0)
    if SOFTMAX in steps:
        empty = empty & ~torch.isnan(exponent_scale(parameters.temperature, source))
    probs = torch.where(empty, 0.0, weights / weights.sum(-1, keepdim=True))
    return torch.where(rows.bad & ~empty, torch.nan, probs).to(torch.float32)
