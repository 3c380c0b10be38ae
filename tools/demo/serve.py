"""The serving loop: schedule, run, sample, show, until every request has ended."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from batch import StepBatch
from check import LogitsCheck
from display import LineDisplay
from engine import Engine
from model import encode
from scheduler import Request, Scheduler, Work
from timing import OperatorTimer
from torch import Tensor

from warploom.core.backends import OPERATORS
from warploom.logits_processor import LogitsPipe, Sample, Softmax, Temperature, TopP

GREEDY_TOP_P = 1e-6  # keeps the most likely token alone


class Sampler:
    """Temperature, softmax and nucleus sampling as one pipe.

    Every request has a seed of its own and the offset counts its tokens: a request draws the same numbers at whatever
    place of whatever batch it runs, and on every rank.
    """

    def __init__(self, temperature: float, top_p: float, seed: int, timer: OperatorTimer) -> None:
        greedy = temperature == 0
        self.temperature = 1.0 if greedy else temperature
        self.top_p = GREEDY_TOP_P if greedy else top_p
        self.seed = seed
        self.timer = timer
        self._pipe = LogitsPipe([Temperature(), Softmax(), TopP(), Sample()])

    def __call__(self, logits: Tensor, requests: Sequence[Request]) -> list[int]:
        """One token per row of `logits`, whose requests are given; waits for the device."""
        if not requests:
            return []
        draws = [[self.seed + request.number for request in requests], [len(request.generated) for request in requests]]
        seeds, offsets = torch.tensor(draws, dtype=torch.int64).to(logits.device)
        sampling = tuple(name for name, operator in OPERATORS.items() if operator.family == "sampling")
        with self.timer.measure("LogitsPipe", operators=sampling):
            tokens = self._pipe(logits, temperature=self.temperature, top_p=self.top_p, seed=seeds, offset=offsets)
        return tokens.tolist()


@dataclass
class Totals:
    """What a run did."""

    steps: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    most_running: int = 0
    seconds: float = 0.0

    def summary(self) -> str:
        rate = self.new_tokens / self.seconds
        return (
            f"{self.new_tokens} tokens from {self.prompt_tokens} prompt tokens in {self.steps} steps of up to "
            f"{self.most_running} requests: {self.seconds:.2f} s, {rate:.0f} tokens/s"
        )


def serve(
    engine: Engine,
    scheduler: Scheduler,
    sampler: Sampler,
    display: LineDisplay | None = None,
    check: LogitsCheck | None = None,
) -> Totals:
    """Run all requests of the scheduler to their ends. Time spent on the check and the display is not counted."""
    totals = Totals(prompt_tokens=sum(len(request.prompt) for request in scheduler.waiting))
    for step in itertools.count():
        if scheduler.done:
            break
        works = scheduler.schedule(step)
        if not works:
            continue  # nobody is here yet
        begun = time.perf_counter()
        output = engine.step(StepBatch.build(works, engine.page_size, engine.device))
        tokens = sampler(output.logits, [work.request for work in works if work.samples])
        totals.seconds += time.perf_counter() - begun
        totals.steps += 1
        totals.new_tokens += len(tokens)
        totals.most_running = max(totals.most_running, len(works))
        if check is not None:
            check.record(works, output)
        fresh = new_text(works, tokens)
        finished = scheduler.finish(works, tokens)
        if check is not None:
            for request in finished:
                check.compare(request)
        if display is not None:
            display.update(fresh, finished)
    return totals


def warm_up(engine: Engine, sampler: Sampler) -> float:
    """Compile kernels and load libraries by serving a short request, off the record; returns the seconds it took."""
    begun = time.perf_counter()
    request = Request(0, encode(""), max_new_tokens=2)
    serve(engine, Scheduler([request], engine.num_pages, engine.page_size, max_step_tokens=16), sampler)
    engine.timer.reset()
    return time.perf_counter() - begun


def new_text(works: Sequence[Work], tokens: Sequence[int]) -> list[tuple[Request, list[int]]]:
    """What this step adds to each request's text: its sampled token, and first of all its prompt."""
    sampled = iter(tokens)
    text = []
    for work in works:
        prompt = list(work.request.prompt[1:]) if work.request.num_cached == 0 else []  # without encode's newline
        text.append((work.request, prompt + ([next(sampled)] if work.samples else [])))
    return text
