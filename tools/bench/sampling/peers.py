"""How it is done without us: with torch, in the forms that serving engines use, and with FlashInfer."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from warploom.core.bench import Peer

from .inputs import MIN_P, TARGET_SIZES, TEMPERATURE, source

_SHORT_SORT = 2**23  # elements; a sort of more takes milliseconds, and with them most of the run's time


def own_numbers(name: str, fn: Callable[[Any], Any], available: Callable[[Any], str] = lambda work: "") -> Peer:
    """A peer that draws with random numbers of its own, whose tokens can't be compared."""
    return Peer(name, fn, available, verified=False)


def sort_is_short(work: Any) -> str:
    """Why a sort is left out: it is long, and of a size that has no target."""
    short = source(work).numel() <= _SHORT_SORT or work.case in TARGET_SIZES
    return "" if short else "left out for its time"


# --- torch ---


def scaled_softmax(work: Any) -> torch.Tensor:
    return torch.softmax(work.logits / TEMPERATURE, dim=-1, dtype=torch.float32)


def multinomial(probs: torch.Tensor) -> torch.Tensor:
    return torch.multinomial(probs, 1).squeeze(1).to(torch.int32)


def race(weights: torch.Tensor) -> torch.Tensor:
    """The earliest of exponential arrivals: `torch.multinomial` without its checks, which synchronise."""
    return (weights / torch.empty_like(weights, dtype=torch.float32).exponential_(1)).argmax(-1)


def keep_nucleus(ordered: torch.Tensor, top_p: float) -> torch.Tensor:
    """Set what follows the nucleus to 0, in place; `ordered` are probabilities, the largest first."""
    return ordered.masked_fill_(ordered.cumsum(-1) - ordered >= top_p, 0)


def keep_by_sort(probs: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Sort, cut, scatter back: what is written where there is no kernel."""
    ordered, indices = probs.float().sort(dim=-1, descending=True)
    if top_k:
        ordered[:, top_k:] = 0
        ordered /= ordered.sum(-1, keepdim=True)
    return torch.zeros_like(ordered).scatter_(1, indices, keep_nucleus(ordered, top_p))


def keep_by_topk(probs: torch.Tensor, top_k: int) -> torch.Tensor:
    kept = torch.where(probs >= torch.topk(probs, top_k).values[:, -1:], probs, 0)
    return kept / kept.sum(-1, keepdim=True)


def keep_min_p(probs: torch.Tensor) -> torch.Tensor:
    return torch.where(probs >= MIN_P * probs.amax(-1, keepdim=True), probs, 0)


def draw_of_largest(ordered: torch.Tensor, indices: torch.Tensor, top_p: float) -> torch.Tensor:
    """Top-p and the draw among the k largest alone: the fastest way without a sort of the vocabulary."""
    winner = race(keep_nucleus(ordered, top_p)).unsqueeze(1)
    return indices.gather(1, winner).squeeze(1).to(torch.int32)


def draw_of_largest_logits(work: Any) -> torch.Tensor:
    values, indices = torch.topk(work.logits, work.top_k)
    return draw_of_largest(torch.softmax(values / TEMPERATURE, -1, torch.float32), indices, work.top_p)


def draw_of_largest_probs(work: Any) -> torch.Tensor:
    values, indices = torch.topk(work.probs, work.top_k)
    return draw_of_largest(values / values.sum(-1, keepdim=True, dtype=torch.float32), indices, work.top_p)


def verify_chain(work: Any) -> torch.Tensor:
    """Verification in the fewest operations: accepted tokens, a draw at the first rejected place, then -1."""
    ids, draft, final = work.ids, work.draft, work.target
    batch, n = ids.shape
    at = ids.long().unsqueeze(-1)
    of_draft = draft.gather(-1, at).squeeze(-1)
    accept = torch.rand_like(of_draft) * of_draft < final[:, :n].gather(-1, at).squeeze(-1)
    length = accept.to(torch.int32).cumprod(-1).sum(-1, keepdim=True)
    row = torch.arange(batch, device=ids.device)
    bonus = final[row, length[:, 0]]
    excess = (bonus - draft[row, length[:, 0].clamp(max=n - 1)]).clamp(min=0)
    drawn = race(torch.where(length < n, excess, bonus)).to(torch.int32).unsqueeze(1)
    place = torch.arange(n + 1, device=ids.device)
    chain = torch.where(place < length, torch.cat([ids, drawn], 1), drawn)
    return torch.where(place > length, -1, chain)


# --- FlashInfer ---


@functools.cache
def flashinfer(module: str = "sampling") -> Any:
    return importlib.import_module(f"flashinfer.{module}")


def has_flashinfer(work: Any) -> str:
    if importlib.util.find_spec("flashinfer") is None:
        return "flashinfer is not installed"
    tensors = [value for value in vars(work).values() if isinstance(value, torch.Tensor)]
    return "" if tensors[0].is_cuda else "needs a GPU"


def flashinfer_from_logits(name: str, *arguments: Callable[[Any], float]) -> Peer:
    """Its softmax with temperature, then its function `name` of the probabilities."""

    def draw(work: Any) -> torch.Tensor:
        probs = flashinfer().softmax(work.logits, TEMPERATURE)
        return getattr(flashinfer(), name)(probs, *(argument(work) for argument in arguments))

    return own_numbers("flashinfer", draw, has_flashinfer)


def flashinfer_function(name: str, *arguments: Callable[[Any], float], verified: bool = True) -> Peer:
    """Its function `name` of the logits or probabilities."""

    def call(work: Any) -> torch.Tensor:
        return getattr(flashinfer(), name)(source(work), *(argument(work) for argument in arguments))

    return Peer("flashinfer", call, has_flashinfer, verified=verified)


def top_k_of(work: Any) -> int:
    return work.top_k


def top_p_of(work: Any) -> float:
    return work.top_p
