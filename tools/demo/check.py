"""Compares the engine's logits with a plain full forward pass in float32.

A finished request's tokens go through `model.Transformer` at once: causal attention makes row `t` of that pass the
logits after token `t`, so a single pass covers every step of the request.

Two top-k routings of nearly equal logits are both right, but what follows differs by far more than rounding. So the
pass takes over the engine's choice of experts, and that is judged by itself: the chosen experts' router logits may lie
below the best ones only as far as rounding explains.

How far rounding reaches depends on the text: some rows are ten times as sensitive as others. It is measured rather than
guessed: the plain pass runs again with the noise of bfloat16 in its activations, several times, and the root mean
square of what this does to a row is the unit in which the engine's error is judged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from engine import StepOutput
from model import MixtureOfExperts, ModelConfig, RMSNorm, Routing, Transformer
from scheduler import Request, Work
from torch import Tensor, nn

ROUNDOFF = torch.finfo(torch.bfloat16).eps / 2
NUM_PROBES = 16
ALLOWED = 8.0
"""Largest error in units of the measured rounding noise. Were the noise of a row one normal variable, its ratio to an
estimate from 16 samples would follow Student's t with 16 degrees of freedom, beyond 8 once in two million rows."""


@dataclass
class Record:
    """What the engine computed for one request."""

    logits: list[Tensor] = field(default_factory=list)
    experts: list[list[Tensor]] = field(default_factory=list)


class LogitsCheck:
    """Collects logits and routing step by step and judges them when a request ends.

    Attributes
    ----------
    worst_error : float
        Largest `||engine - plain|| / ||plain||` of a row of logits.
    worst_excess : float
        Largest `||engine - plain||` of a row of logits in units of its rounding noise.
    worst_routing : float
        Largest gap between a chosen expert's router logit and the k-th best one in units of their rounding noise.
    rows : int
        Rows of logits compared.
    """

    def __init__(self, config: ModelConfig, state: dict[str, Tensor], device: torch.device) -> None:
        self.model = Transformer(config).eval()
        self.model.load_state_dict(state)
        self.model.to(device)
        self.worst_error = self.worst_excess = self.worst_routing = 0.0
        self.rows = 0
        self._records: dict[Request, Record] = {}
        self._generator = torch.Generator(device).manual_seed(0)

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
        plain, routings = self._forward(tokens, experts)
        with self._rounding_noise():
            noisy, noisy_routings = self._forward(tokens.expand(NUM_PROBES, -1), experts)
        last = slice(-len(engine), None)
        error = (engine - plain[0, last]).norm(dim=-1)
        self.rows += len(engine)
        self.worst_error = worst(self.worst_error, error / plain[0, last].norm(dim=-1))
        self.worst_excess = worst(self.worst_excess, error / spread(noisy, plain)[last])
        for routing, noisy_routing, chosen in zip(routings, noisy_routings, experts, strict=True):
            gap = routing_gap(routing.logits, chosen)[0]
            self.worst_routing = worst(self.worst_routing, gap / spread(noisy_routing.logits, routing.logits))

    def _forward(self, tokens: Tensor, experts: Sequence[Tensor]) -> tuple[Tensor, list[Routing]]:
        trace: list[Routing] = []
        return self.model(tokens, [choice.expand(len(tokens), -1, -1) for choice in experts], trace), trace

    @contextmanager
    def _rounding_noise(self) -> Iterator[None]:
        """Perturb what the engine rounds, results of norms, projections and mixtures, by the unit roundoff at most."""

        def perturb(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
            noise = torch.empty_like(output).uniform_(-ROUNDOFF, ROUNDOFF, generator=self._generator)
            return output + output * noise

        exact = {self.model.head, *(m.router for m in self.model.modules() if isinstance(m, MixtureOfExperts))}
        sites = [m for m in self.model.modules() if isinstance(m, (RMSNorm, nn.Linear, MixtureOfExperts))]
        hooks = [module.register_forward_hook(perturb) for module in sites if module not in exact]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @property
    def passed(self) -> bool:
        return self.rows > 0 and self.worst_excess <= ALLOWED and self.worst_routing <= ALLOWED

    def summary(self) -> str:
        return (
            f"check: {self.rows} rows of logits against a full float32 forward pass: worst relative error "
            f"{self.worst_error:.2e}; in units of bfloat16's rounding noise: logits {self.worst_excess:.1f}, routing "
            f"{self.worst_routing:.1f}, allowed {ALLOWED:.0f}: {'ok' if self.passed else 'FAILED'}"
        )


def spread(noisy: Tensor, plain: Tensor) -> Tensor:
    """Root mean square over the probes of `||noisy - plain||`, `[tokens]`."""
    return (noisy - plain).square().sum(-1).mean(0).sqrt()


def worst(so_far: float, values: Tensor) -> float:
    """The largest of all; NaN counts as infinite."""
    return max(so_far, torch.nan_to_num(values, nan=math.inf).max().item())


def routing_gap(logits: Tensor, chosen: Tensor) -> Tensor:
    """How far each token's weakest of its `chosen` experts (`[..., top_k]`) lies below the best `top_k`."""
    kth_best = logits.topk(chosen.shape[-1], dim=-1).values[..., -1]
    return (kth_best - logits.gather(-1, chosen).amin(-1)).clamp(min=0)
