"""Compares the engine's logits with a plain full forward pass in float32.

A finished request's tokens go through `model.Transformer` at once: causal attention makes row `t` of that pass the
logits after token `t`, so a single pass covers every step of the request.

Two top-k routings of nearly equal logits are both right, but their logits differ by far more than rounding. So the pass
takes over the engine's choice of experts, and the choice is judged by itself: no chosen expert's router logit may lie
below the best k ones by more than rounding explains.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from engine import StepOutput
from model import ModelConfig, Routing, Transformer
from scheduler import Request, Work
from torch import Tensor

# Places where an activation is rounded to bfloat16 on its way through a layer: norm, qkv, rope, attention's
# probabilities, its output, the projection; norm, gate and up, activation, down, weighted sum of the experts.
ROUNDINGS_PER_LAYER = 11
ROUNDINGS_OF_SPLIT = 2  # the partial sums of the two all-reduces
ROUNDINGS_OF_HEAD = 1  # the last norm; logits leave in float32


def tolerance(config: ModelConfig, world_size: int) -> float:
    """Allowed relative error of a row of logits.

    Every rounding perturbs the residual stream by at most the unit roundoff `u` of bfloat16, relative to its norm. The
    perturbations are independent, so n of them add up to `u * sqrt(n)`.
    """
    per_layer = ROUNDINGS_PER_LAYER + (ROUNDINGS_OF_SPLIT if world_size > 1 else 0)
    roundings = config.num_layers * per_layer + ROUNDINGS_OF_HEAD
    return torch.finfo(torch.bfloat16).eps / 2 * math.sqrt(roundings)


@dataclass
class Record:
    """What the engine computed for one request."""

    logits: list[Tensor] = field(default_factory=list)
    experts: list[list[Tensor]] = field(default_factory=list)


class LogitsCheck:
    """Collects logits and routing step by step and judges them when a request ends.

    Attributes
    ----------
    worst_logits : float
        Largest `||engine - plain|| / ||plain||` of a row of logits.
    worst_routing : float
        Largest gap between a chosen expert's router logit and the k-th best, over twice the norm of the router logits.
    rows : int
        Rows of logits compared.
    """

    def __init__(self, config: ModelConfig, state: dict[str, Tensor], device: torch.device, world_size: int) -> None:
        self.model = Transformer(config).eval()
        self.model.load_state_dict(state)
        self.model.to(device)
        self.tolerance = tolerance(config, world_size)
        self.worst_logits = 0.0
        self.worst_routing = 0.0
        self.rows = 0
        self._records: dict[Request, Record] = {}

    def record(self, works: Sequence[Work], output: StepOutput) -> None:
        """Keep a step's results; call it before the scheduler accounts for the step."""
        row, sample = 0, 0
        for work in works:
            record = self._records.setdefault(work.request, Record())
            record.experts.append([experts[row : row + work.num_new] for experts in output.experts])
            row += work.num_new
            if work.samples:
                record.logits.append(output.logits[sample])
                sample += 1

    @torch.no_grad()
    def compare(self, request: Request) -> None:
        """Judge a finished request."""
        record = self._records.pop(request)
        engine = torch.stack(record.logits)
        tokens = torch.tensor([request.tokens[:-1]], device=engine.device)
        experts = [torch.cat(chunks)[None] for chunks in zip(*record.experts, strict=True)]
        trace: list[Routing] = []
        plain = self.model(tokens, experts, trace)[0, -len(engine) :]
        errors = (engine - plain).norm(dim=-1) / plain.norm(dim=-1)
        gaps = [routing_gap(routing.logits, chosen) for routing, chosen in zip(trace, experts, strict=True)]
        self.rows += len(engine)
        self.worst_logits = worst(self.worst_logits, errors)
        self.worst_routing = worst(self.worst_routing, *gaps)

    @property
    def passed(self) -> bool:
        return self.rows > 0 and self.worst_logits <= self.tolerance and self.worst_routing <= self.tolerance

    def summary(self) -> str:
        return (
            f"check: {self.rows} rows of logits against a full float32 forward pass: worst relative error "
            f"{self.worst_logits:.2e}, worst routing gap {self.worst_routing:.2e}, allowed {self.tolerance:.2e}: "
            f"{'ok' if self.passed else 'FAILED'}"
        )


def worst(so_far: float, *errors: Tensor) -> float:
    """The largest of all; NaN counts as infinite."""
    largest = (torch.nan_to_num(e, nan=math.inf).max().item() for e in errors)
    return max(so_far, *largest)


def routing_gap(logits: Tensor, chosen: Tensor) -> Tensor:
    """How far each token's `chosen` experts (`[..., top_k]`) miss the best ones, over twice the norm of its logits."""
    kth_best = logits.topk(chosen.shape[-1], dim=-1).values[..., -1]
    weakest = logits.gather(-1, chosen).amin(-1)
    return (kth_best - weakest).clamp(min=0) / (2 * logits.norm(dim=-1))
