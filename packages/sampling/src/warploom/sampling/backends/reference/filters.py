"""The filters of a chain: which tokens stay, and the distribution over those that do.

Every filter keeps the tokens at or above a threshold, so equal values stay or go together and the result does not
depend on the order of the vocabulary. This reference sorts; it decides by sums in float64.
"""

from __future__ import annotations

import torch

from warploom.sampling.backends.reference.softmax import softmax_rows
from warploom.sampling.parameters import FilterParameters
from warploom.sampling.steps import SOFTMAX, Steps

__all__ = ["apply_steps", "mask_top_k"]


def _keep_top_k(values: torch.Tensor, top_k: torch.Tensor) -> torch.Tensor:
    """Tokens not below the k-th largest value; all of them unless ``1 <= k <= vocab``."""
    vocab = values.shape[-1]
    ordered = values.sort(dim=-1, descending=True).values
    threshold = ordered.gather(-1, (top_k - 1).clamp(0, vocab - 1))
    # "Not below" rather than "at or above": NaN stays, and is seen by what follows.
    return ~(values < threshold) | (top_k < 1) | (top_k > vocab)


def _keep_top_p(probs: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Tokens with less than `top_p` of the row's mass strictly above them; the most probable always."""
    ordered = probs.sort(dim=-1, descending=True).values
    mass = ordered.to(torch.float64).cumsum(-1)
    above = torch.cat([torch.zeros_like(mass[:, :1]), mass[:, :-1]], dim=-1)
    inside = (above < mass[:, -1:] * top_p).sum(-1, keepdim=True)
    threshold = ordered.gather(-1, (inside - 1).clamp(min=0))
    return ~(probs < threshold) | ~(top_p < 1)


def _keep_min_p(probs: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """Tokens with at least `min_p` times the largest probability, a product rounded to float32."""
    return ~(probs < probs.amax(-1, keepdim=True) * min_p.clamp(max=1.0))


def _renormalise(probs: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Kept probabilities over their sum, float32; a row with NaN or infinity becomes NaN, one without mass stays 0."""
    kept = torch.where(keep, probs, 0.0).to(torch.float64)
    total = kept.sum(-1, keepdim=True)
    total = torch.where(torch.isinf(total), torch.nan, total)
    return torch.where(total == 0, 0.0, kept / total).to(torch.float32)


def mask_top_k(logits: torch.Tensor, top_k: torch.Tensor) -> torch.Tensor:
    """Logits with those below the k-th largest at −inf; a row with NaN is left alone."""
    keep = _keep_top_k(logits, top_k) | torch.isnan(logits).any(-1, keepdim=True)
    return torch.where(keep, logits, -torch.inf)


def apply_steps(source: torch.Tensor, steps: Steps, parameters: FilterParameters) -> torch.Tensor:
    """Run a chain from logits or probabilities ``[rows, vocab]`` to float32 probabilities.

    Parameters hold one value a row of `source`. Without a step, negative weights become 0 and the rest is untouched.
    """
    top_k = parameters.top_k.column(source, torch.int64)
    values = source
    if SOFTMAX not in steps:
        values = values.to(torch.float32).clamp(min=0.0)
    is_logits = SOFTMAX in steps
    for step in steps:
        if step == SOFTMAX:
            values, is_logits = softmax_rows(values, parameters.temperature), False
        elif step == "top_k" and is_logits:
            values = mask_top_k(values, top_k)
        elif step == "top_k":
            values = _renormalise(values, _keep_top_k(values, top_k))
        elif step == "top_p":
            top_p = parameters.top_p.column(source, torch.float32)
            values = _renormalise(values, _keep_top_p(values, top_p))
        else:
            min_p = parameters.min_p.column(source, torch.float32)
            values = _renormalise(values, _keep_min_p(values, min_p))
    return values
