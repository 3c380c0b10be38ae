"""Draws from logits and from probabilities."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from warploom import sampling
from warploom.core.bench import Benchmark, Work, grid

from .inputs import (
    FEW,
    MANY,
    MIN_P,
    SEED,
    TEMPERATURE,
    VOCAB,
    benchmark,
    make_logits,
    make_probs,
    parameters,
    read,
    target,
    tokens_agree,
)
from .peers import (
    draw_of_largest_logits,
    draw_of_largest_probs,
    flashinfer,
    flashinfer_from_logits,
    flashinfer_function,
    has_flashinfer,
    keep_by_sort,
    keep_min_p,
    multinomial,
    own_numbers,
    race,
    scaled_softmax,
    sort_is_short,
    top_k_of,
    top_p_of,
)


def make_draw(case: SimpleNamespace, device: torch.device) -> Work:
    work = make_logits(case, device)
    work.out = torch.empty(case.batch, dtype=torch.int32, device=device)
    return work


def make_draw_from_probs(case: SimpleNamespace, device: torch.device) -> Work:
    work = make_probs(case, device)
    work.out = torch.empty(case.batch, dtype=torch.int32, device=device)
    return work


def draw_benchmark(name: str, draw: Callable[..., Any], **more: Any) -> Benchmark:
    make = make_draw_from_probs if name.endswith("from_probs") else make_draw
    return benchmark(name, draw, make=make, check=tokens_agree, operator="sample", bytes=read, **more)


# --- Draws from logits ---

LOGITS_OPTIONS: dict[str, Any] = {"seed": SEED, "temperature": TEMPERATURE}


def draw_plain(work: Any, **options: Any) -> Any:
    return sampling.sampling_from_logits(work.logits, **LOGITS_OPTIONS, **options)


def draw_top_p(work: Any, **options: Any) -> Any:
    return sampling.top_p_sampling_from_logits(work.logits, work.top_p, **LOGITS_OPTIONS, **options)


def draw_top_k_top_p(work: Any, **options: Any) -> Any:
    return sampling.top_k_top_p_sampling_from_logits(work.logits, work.top_k, work.top_p, **LOGITS_OPTIONS, **options)


def draw_min_p(work: Any, **options: Any) -> Any:
    return sampling.min_p_sampling_from_logits(work.logits, MIN_P, **LOGITS_OPTIONS, **options)


FROM_LOGITS = draw_benchmark(
    "sampling_from_logits",
    draw_plain,
    cases=MANY,
    peers=[
        own_numbers("torch multinomial", lambda work: multinomial(scaled_softmax(work))),
        own_numbers("torch exponential race", lambda work: race(scaled_softmax(work))),
        own_numbers(
            "flashinfer", lambda work: flashinfer().sampling_from_logits(work.logits / TEMPERATURE), has_flashinfer
        ),
    ],
    target=target({1: 10, 64: 14, 512: 80}),
)

TOP_P_FROM_LOGITS = draw_benchmark(
    "top_p_sampling_from_logits",
    draw_top_p,
    cases=MANY + parameters(top_p=[0.1, 0.99]),
    peers=[
        own_numbers(
            "torch sort", lambda work: multinomial(keep_by_sort(scaled_softmax(work), 0, work.top_p)), sort_is_short
        ),
        flashinfer_from_logits("top_p_sampling_from_probs", top_p_of),
    ],
    target=target({64: 28, 512: 140}),
)

TOP_K_TOP_P_FROM_LOGITS = draw_benchmark(
    "top_k_top_p_sampling_from_logits",
    draw_top_k_top_p,
    cases=MANY + parameters(top_k=[2048]),
    peers=[
        own_numbers(
            "torch sort",
            lambda work: multinomial(keep_by_sort(scaled_softmax(work), work.top_k, work.top_p)),
            sort_is_short,
        ),
        own_numbers("torch.topk, top-p and race of k", draw_of_largest_logits),
        flashinfer_from_logits("top_k_top_p_sampling_from_probs", top_k_of, top_p_of),
    ],
    target=target({1: 15, 64: 30, 512: 150}),
)

MIN_P_FROM_LOGITS = draw_benchmark(
    "min_p_sampling_from_logits",
    draw_min_p,
    cases=FEW,
    peers=[
        own_numbers("torch exponential race", lambda work: race(keep_min_p(scaled_softmax(work)))),
        flashinfer_from_logits("min_p_sampling_from_probs", lambda work: MIN_P),
    ],
)


# --- Where the random numbers come from ---


def make_random(case: SimpleNamespace, device: torch.device) -> Work:
    """A seed fixes the tokens; with an offset on the device or a generator, every replay draws new ones."""
    work = make_draw(case, device)
    work.random = {"seed": SEED}
    if case.random == "device_offset":
        work.random["offset"] = torch.zeros(1, dtype=torch.int64, device=device)
    elif case.random == "generator":
        work.random.clear()
    return work


def draw_random(work: Any, **options: Any) -> Any:
    return sampling.sampling_from_logits(work.logits, temperature=TEMPERATURE, **work.random, **options)


def random_reference(work: Any) -> torch.Tensor:
    return draw_random(Work(logits=work.logits, random={"seed": SEED}), backend="reference")


def random_tokens_agree(work: Any, actual: torch.Tensor, expected: torch.Tensor) -> None:
    """The stream of a seed begins at offset 0, to which a device's offset is set back for the next contender."""
    if "offset" in work.random:
        work.random["offset"].zero_()
    if work.random:
        tokens_agree(work, actual, expected)
    elif bool(((actual < 0) | (actual >= work.case.vocab)).any()):
        raise AssertionError("tokens outside the vocabulary")


RANDOM = Benchmark(
    "sampling_from_logits, random numbers",
    cases=grid(batch=[1, 64], vocab=[VOCAB], logits=["flat"], random=["seed", "device_offset", "generator"]),
    quick=grid(batch=[3], vocab=[1000], logits=["flat"], random=["seed", "device_offset", "generator"]),
    make=make_random,
    ours=lambda work, backend: draw_random(work, out=work.out, backend=backend),
    reference=random_reference,
    check=random_tokens_agree,
    operator="sample",
    bytes=read,
)


# --- Draws from probabilities ---


def draw_from_probs(work: Any, **options: Any) -> Any:
    return sampling.sampling_from_probs(work.probs, seed=SEED, **options)


def draw_top_p_from_probs(work: Any, **options: Any) -> Any:
    return sampling.top_p_sampling_from_probs(work.probs, work.top_p, seed=SEED, **options)


def draw_top_k_top_p_from_probs(work: Any, **options: Any) -> Any:
    return sampling.top_k_top_p_sampling_from_probs(work.probs, work.top_k, work.top_p, seed=SEED, **options)


FROM_PROBS = draw_benchmark(
    "sampling_from_probs",
    draw_from_probs,
    cases=FEW,
    peers=[
        own_numbers("torch multinomial", lambda work: multinomial(work.probs)),
        own_numbers("torch exponential race", lambda work: race(work.probs)),
        flashinfer_function("sampling_from_probs", verified=False),
    ],
)

TOP_P_FROM_PROBS = draw_benchmark(
    "top_p_sampling_from_probs",
    draw_top_p_from_probs,
    cases=FEW,
    peers=[
        own_numbers("torch sort", lambda work: multinomial(keep_by_sort(work.probs, 0, work.top_p)), sort_is_short),
        flashinfer_function("top_p_sampling_from_probs", top_p_of, verified=False),
    ],
)

TOP_K_TOP_P_FROM_PROBS = draw_benchmark(
    "top_k_top_p_sampling_from_probs",
    draw_top_k_top_p_from_probs,
    cases=FEW,
    peers=[
        own_numbers("torch.topk, top-p and race of k", draw_of_largest_probs),
        flashinfer_function("top_k_top_p_sampling_from_probs", top_k_of, top_p_of, verified=False),
    ],
)


BENCHMARKS = [
    TOP_K_TOP_P_FROM_LOGITS,
    TOP_P_FROM_LOGITS,
    FROM_LOGITS,
    MIN_P_FROM_LOGITS,
    RANDOM,
    FROM_PROBS,
    TOP_P_FROM_PROBS,
    TOP_K_TOP_P_FROM_PROBS,
]
