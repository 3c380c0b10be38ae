"""Verification of chains of draft tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from warploom import sampling
from warploom.core.bench import Work, grid

from .inputs import SEED, SPREAD, VOCAB, benchmark, tokens_agree
from .peers import flashinfer, has_flashinfer, multinomial, own_numbers, verify_chain


def make_speculative(case: SimpleNamespace, device: torch.device) -> Work:
    """The draft's logits are the target's with noise, so that some tokens pass."""
    logits = torch.randn(case.batch, case.drafts + 1, case.vocab, device=device) * SPREAD[case.logits]
    guess = logits[:, :-1] + torch.randn(case.batch, case.drafts, case.vocab, device=device)
    draft = torch.softmax(guess, -1)
    ids = multinomial(draft.flatten(0, 1)).view(case.batch, case.drafts)
    out = torch.empty(case.batch, case.drafts + 1, dtype=torch.int32, device=device)
    return Work(draft=draft, ids=ids, target=torch.softmax(logits, -1), out=out)


def speculate(work: Any, **options: Any) -> Any:
    return sampling.chain_speculative_sampling(work.draft, work.ids, work.target, seed=SEED, **options)[0]


SPECULATIVE = benchmark(
    "chain_speculative_sampling",
    speculate,
    cases=grid(batch=[1, 4, 16, 64, 256], drafts=[4], vocab=[VOCAB], logits=list(SPREAD))
    + grid(batch=[64], drafts=[4], vocab=[32000, 262144], logits=["flat"]),
    quick=grid(batch=[1, 3], drafts=[2], vocab=[1000], logits=["flat"]),
    make=make_speculative,
    check=tokens_agree,
    peers=[
        own_numbers("torch", verify_chain),
        own_numbers(
            "flashinfer",
            lambda work: flashinfer().chain_speculative_sampling(work.draft, work.ids, work.target)[0],
            has_flashinfer,
        ),
    ],
    # The rows of target and draft at the first token that fails.
    bytes=lambda work: 2.0 * work.target[:, 0].numel() * work.target.element_size(),
)

BENCHMARKS = [SPECULATIVE]
