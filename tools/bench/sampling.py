"""Sampling: the sampling rows of the goals, against torch and FlashInfer.

"flat" logits are N(0, 1), "peaked" ones N(0, 36). Draws start from raw logits, temperature and softmax included. Peers
draw with random numbers of their own: their tokens are not compared, their distributions and values are.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from types import SimpleNamespace
from typing import Any

import torch

from warploom import sampling
from warploom.core.bench import Benchmark, Peer, Work, grid

VOCAB = 128256
BATCHES = [1, 64, 512]
SPREAD = {"flat": 1.0, "peaked": 6.0}
TEMPERATURE, TOP_K, TOP_P, MIN_P = 0.8, 50, 0.9, 0.05
SMALL = grid(batch=[3], vocab=[1000], logits=["flat"])
# The goals' rows first, then their neighbours in batch, vocabulary, alignment and dtype.
DRAWS = (
    grid(batch=BATCHES, vocab=[VOCAB], logits=list(SPREAD))
    + grid(batch=[8, 256, 1024], vocab=[VOCAB], logits=["flat"])
    + grid(batch=[1, 64, 512], vocab=[32000, 151936, 262144], logits=["flat"])
    + grid(batch=[64], vocab=[50257], logits=["flat"])
    + grid(batch=[1, 64, 512], vocab=[VOCAB], logits=["flat"], dtype=[torch.bfloat16])
)
FILTERS = grid(batch=BATCHES, vocab=[VOCAB], logits=list(SPREAD)) + grid(
    batch=[64], vocab=[32000, 262144], logits=["flat"]
)


def make_logits(case: SimpleNamespace, device: torch.device) -> Work:
    spread = SPREAD[getattr(case, "logits", "flat")]
    logits = torch.randn(case.batch, case.vocab, device=device) * spread
    return Work(logits=logits.to(getattr(case, "dtype", torch.float32)))


def make_softmax(case: SimpleNamespace, device: torch.device) -> Work:
    work = make_logits(case, device)
    work.temperature = torch.full((case.batch,), TEMPERATURE, device=device)
    work.out = torch.empty(case.batch, case.vocab, device=device)
    return work


def make_draw(case: SimpleNamespace, device: torch.device) -> Work:
    work = make_logits(case, device)
    work.out = torch.empty(case.batch, dtype=torch.int32, device=device)
    return work


def make_probs(case: SimpleNamespace, device: torch.device) -> Work:
    probs = torch.softmax(make_logits(case, device).logits, dim=-1)
    return Work(probs=probs, out=torch.empty_like(probs))


def make_top_k(case: SimpleNamespace, device: torch.device) -> Work:
    work = make_logits(case, device)
    indices = torch.empty(case.batch, TOP_K, dtype=torch.int64, device=device)
    work.out = (torch.empty(case.batch, TOP_K, device=device), indices)
    return work


@functools.cache
def flashinfer() -> Any:
    return importlib.import_module("flashinfer.sampling")


def has_flashinfer(work: Any) -> str:
    if importlib.util.find_spec("flashinfer") is None:
        return "flashinfer is not installed"
    return "" if next(iter(vars(work).values())).is_cuda else "needs a GPU"


def read(work: Any) -> float:
    return float(work.logits.nbytes)


def read_and_write(work: Any) -> float:
    return float((work.probs if hasattr(work, "probs") else work.logits).nbytes + work.out.nbytes)


def most_tokens_agree(work: Any, actual: torch.Tensor, expected: torch.Tensor) -> None:
    """The same tokens, but for draws that fall within the rounding of a probability."""
    wrong = int((actual != expected).sum())
    if wrong > len(expected) / 100:
        raise AssertionError(f"{wrong} of {len(expected)} tokens differ")


# --- Softmax ---

SOFTMAX = Benchmark(
    "softmax",
    cases=grid(batch=BATCHES, vocab=[VOCAB]) + grid(batch=[1, 64, 512], vocab=[32000, 151936, 262144])
    + grid(batch=BATCHES, vocab=[VOCAB], dtype=[torch.bfloat16]),
    quick=grid(batch=[3], vocab=[1000]),
    make=make_softmax,
    ours=lambda work, backend: sampling.softmax(work.logits, work.temperature, out=work.out, backend=backend),
    reference=lambda work: sampling.softmax(work.logits, work.temperature, backend="reference"),
    peers=[
        # torch.softmax has no temperature; dividing first is the second peer.
        Peer(
            "torch.softmax, no temperature",
            lambda work: torch.softmax(work.logits, dim=-1, dtype=torch.float32),
            verified=False,
        ),
        Peer("torch", lambda work: torch.softmax(work.logits / work.temperature.unsqueeze(1), -1, torch.float32)),
        Peer("flashinfer", lambda work: flashinfer().softmax(work.logits, work.temperature), has_flashinfer),
    ],
    bytes=read_and_write,
)  # fmt: skip


# --- Draws from logits ---


def scaled_softmax(work: Any) -> torch.Tensor:
    return torch.softmax(work.logits / TEMPERATURE, dim=-1)


def multinomial(probs: torch.Tensor) -> torch.Tensor:
    return torch.multinomial(probs, 1).squeeze(1).to(torch.int32)


def keep_by_sort(probs: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Sort, cut, scatter back: what is written where there is no kernel."""
    ordered, indices = probs.sort(dim=-1, descending=True)
    if top_k:
        ordered[:, top_k:] = 0
        ordered /= ordered.sum(-1, keepdim=True)
    ordered.masked_fill_(ordered.cumsum(-1) - ordered >= top_p, 0)
    return torch.zeros_like(probs).scatter_(1, indices, ordered)


def draw_by_sort(work: Any, top_k: int = 0, top_p: float = 1.0) -> torch.Tensor:
    return multinomial(keep_by_sort(scaled_softmax(work), top_k, top_p))


def draw_by_top_k(work: Any) -> torch.Tensor:
    """torch.topk, then everything else on the k logits: the fastest known to us without a kernel of one's own."""
    logits, indices = torch.topk(work.logits, TOP_K, dim=-1)
    probs = torch.softmax(logits.float() / TEMPERATURE, dim=-1)
    probs.masked_fill_(probs.cumsum(-1) - probs >= TOP_P, 0)
    place = (probs / torch.empty_like(probs).exponential_()).argmax(-1, keepdim=True)
    return indices.gather(-1, place).squeeze(1).to(torch.int32)


def draw_by_race(work: Any) -> torch.Tensor:
    probs = scaled_softmax(work)
    return (probs / torch.empty_like(probs).exponential_()).argmax(-1).to(torch.int32)


def draw_with_flashinfer(work: Any, name: str, *arguments: float) -> torch.Tensor:
    probs = flashinfer().softmax(work.logits, TEMPERATURE)
    return getattr(flashinfer(), name)(probs, *arguments)


def draw_both(work: Any, backend: str) -> Any:
    return sampling.top_k_top_p_sampling_from_logits(
        work.logits, TOP_K, TOP_P, seed=1, temperature=TEMPERATURE, out=work.out, backend=backend
    )


def draw_top_p(work: Any, backend: str) -> Any:
    return sampling.top_p_sampling_from_logits(
        work.logits, TOP_P, seed=1, temperature=TEMPERATURE, out=work.out, backend=backend
    )


def draw_min_p(work: Any, backend: str) -> Any:
    return sampling.min_p_sampling_from_logits(
        work.logits, MIN_P, seed=1, temperature=TEMPERATURE, out=work.out, backend=backend
    )


def draw_plain(work: Any, backend: str) -> Any:
    return sampling.sampling_from_logits(work.logits, seed=1, temperature=TEMPERATURE, out=work.out, backend=backend)


def own_numbers(name: str, fn: Any, available: Any = lambda work: "") -> Peer:
    return Peer(name, fn, available, verified=False)


TOP_K_TOP_P = Benchmark(
    "top_k_top_p_sampling_from_logits",
    cases=DRAWS,
    quick=SMALL,
    make=make_draw,
    ours=draw_both,
    reference=lambda work: draw_both(work, "reference").clone(),
    check=most_tokens_agree,
    operator="sample",
    peers=[
        own_numbers("torch sort", lambda work: draw_by_sort(work, TOP_K, TOP_P)),
        own_numbers("torch.topk, then the rest", draw_by_top_k),
        own_numbers(
            "flashinfer",
            lambda work: draw_with_flashinfer(work, "top_k_top_p_sampling_from_probs", TOP_K, TOP_P),
            has_flashinfer,
        ),
    ],
    bytes=read,
)

TOP_P_ALONE = Benchmark(
    "top_p_sampling_from_logits",
    cases=DRAWS,
    quick=SMALL,
    make=make_draw,
    ours=draw_top_p,
    reference=lambda work: draw_top_p(work, "reference").clone(),
    check=most_tokens_agree,
    operator="sample",
    peers=[
        own_numbers("torch sort", lambda work: draw_by_sort(work, top_p=TOP_P)),
        own_numbers(
            "flashinfer", lambda work: draw_with_flashinfer(work, "top_p_sampling_from_probs", TOP_P), has_flashinfer
        ),
    ],
    bytes=read,
)

FROM_LOGITS = Benchmark(
    "sampling_from_logits",
    cases=DRAWS,
    quick=SMALL,
    make=make_draw,
    ours=draw_plain,
    reference=lambda work: draw_plain(work, "reference").clone(),
    check=most_tokens_agree,
    operator="sample",
    peers=[
        own_numbers("torch multinomial", lambda work: multinomial(scaled_softmax(work))),
        own_numbers("torch race", draw_by_race),
        own_numbers(
            "flashinfer",
            lambda work: flashinfer().sampling_from_logits(work.logits / TEMPERATURE),
            has_flashinfer,
        ),
    ],
    bytes=read,
)


# --- Filters and selection ---

TOP_P_RENORM = Benchmark(
    "top_p_renorm_probs",
    cases=FILTERS,
    quick=SMALL,
    make=make_probs,
    ours=lambda work, backend: sampling.top_p_renorm_probs(work.probs, TOP_P, out=work.out, backend=backend),
    reference=lambda work: sampling.top_p_renorm_probs(work.probs, TOP_P, backend="reference"),
    operator="renorm",
    peers=[
        # Sums in float32 cut elsewhere by some tokens.
        own_numbers("torch sort", lambda work: keep_by_sort(work.probs, 0, TOP_P)),
        own_numbers("flashinfer", lambda work: flashinfer().top_p_renorm_probs(work.probs, TOP_P), has_flashinfer),
    ],
    bytes=read_and_write,
)

TOP_K_SELECTION = Benchmark(
    "top_k",
    cases=FILTERS,
    quick=SMALL,
    make=make_top_k,
    ours=lambda work, backend: sampling.top_k(work.logits, TOP_K, sorted=True, out=work.out, backend=backend)[:1],
    reference=lambda work: sampling.top_k(work.logits, TOP_K, sorted=True, backend="reference")[:1],
    peers=[
        Peer("torch.topk", lambda work: torch.topk(work.logits, TOP_K, out=work.out)[:1]),
        Peer(
            "flashinfer",
            lambda work: importlib.import_module("flashinfer.topk").top_k(work.logits, TOP_K, sorted=True)[:1],
            has_flashinfer,
        ),
    ],
    bytes=read,
)

MIN_P_ALONE = Benchmark(
    "min_p_sampling_from_logits",
    cases=FILTERS,
    quick=SMALL,
    make=make_draw,
    ours=draw_min_p,
    reference=lambda work: draw_min_p(work, "reference").clone(),
    check=most_tokens_agree,
    operator="sample",
    peers=[],
    bytes=read,
)


def make_masked(case: SimpleNamespace, device: torch.device) -> Work:
    work = make_logits(case, device)
    work.out = torch.empty_like(work.logits)
    return work


def mask_by_top_k(logits: torch.Tensor) -> torch.Tensor:
    least = torch.topk(logits, TOP_K, dim=-1).values[:, -1:]
    return torch.where(logits < least, -torch.inf, logits)


TOP_K_MASK = Benchmark(
    "top_k_mask_logits",
    cases=FILTERS,
    quick=SMALL,
    make=make_masked,
    ours=lambda work, backend: sampling.top_k_mask_logits(work.logits, TOP_K, out=work.out, backend=backend),
    reference=lambda work: sampling.top_k_mask_logits(work.logits, TOP_K, backend="reference"),
    peers=[Peer("torch.topk", lambda work: mask_by_top_k(work.logits))],
    bytes=read_and_write,
)


# --- Speculative verification ---


def make_speculative(case: SimpleNamespace, device: torch.device) -> Work:
    shape = (case.batch, case.n + 1, case.vocab)
    target = torch.softmax(torch.randn(shape, device=device) * 2, dim=-1)
    noise = torch.rand(case.batch, case.n, case.vocab, device=device)
    draft = target[:, :-1] * noise
    draft /= draft.sum(-1, keepdim=True)
    ids = torch.argmax(draft / torch.empty_like(draft).exponential_(), dim=-1)
    return Work(
        draft=draft, ids=ids, target=target, out=torch.empty(case.batch, case.n + 1, dtype=torch.int32, device=device)
    )


def verify(work: Any, backend: str) -> torch.Tensor:
    arguments = (work.draft, work.ids, work.target)
    return sampling.chain_speculative_sampling(*arguments, seed=1, out=work.out, backend=backend)[0]


SPECULATIVE = Benchmark(
    "chain_speculative_sampling",
    cases=grid(batch=[1, 8, 64], n=[3], vocab=[VOCAB]),
    quick=grid(batch=[3], n=[2], vocab=[1000]),
    make=make_speculative,
    ours=verify,
    reference=lambda work: verify(work, "reference").clone(),
    check=lambda work, actual, expected: most_tokens_agree(work, actual.flatten(), expected.flatten()),
    peers=[],
    bytes=lambda work: float(2 * work.draft.shape[0] * work.draft.shape[2] * work.draft.element_size()),
)

BENCHMARKS = [
    SOFTMAX,
    FROM_LOGITS,
    TOP_P_ALONE,
    TOP_K_TOP_P,
    MIN_P_ALONE,
    TOP_P_RENORM,
    TOP_K_MASK,
    TOP_K_SELECTION,
    SPECULATIVE,
]
