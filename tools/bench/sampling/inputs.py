"""What the sampling benchmarks share: sizes, inputs, targets, what is moved, how tokens are checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from warploom.core.bench import Benchmark, Target, Work, grid

VOCAB = 128256
SPREAD = {"flat": 1.0, "peaked": 6.0}
TEMPERATURE, TOP_K, TOP_P, MIN_P = 0.8, 50, 0.9, 0.05
SEED = 1

# The reference makes dozens of float64 and int64 copies of what it checks.
CHECKED_ROWS = 32

SMALL = grid(batch=[1, 3], vocab=[1000], logits=["flat"])
TARGET_SIZES = grid(batch=[1, 64, 512], vocab=[VOCAB], logits=list(SPREAD))
BATCHES = grid(batch=[1, 4, 16, 64, 256, 512, 1024], vocab=[VOCAB], logits=list(SPREAD))
# Rows of 50257 elements begin at every alignment.
UNALIGNED_AND_HALF = grid(batch=[64], vocab=[50257], logits=["flat"]) + grid(
    batch=[64], vocab=[VOCAB], logits=["flat"], dtype=[torch.bfloat16]
)
MANY = BATCHES + grid(batch=[1, 64, 512], vocab=[32000, 151936, 262144], logits=["flat"]) + UNALIGNED_AND_HALF
FEW = TARGET_SIZES + grid(batch=[64], vocab=[32000, 262144], logits=["flat"]) + UNALIGNED_AND_HALF


def parameters(batch: Sequence[int] = (64,), **values: Sequence[float]) -> list[SimpleNamespace]:
    """Cases for other parameters than the usual ones."""
    return grid(batch=batch, vocab=[VOCAB], logits=list(SPREAD), **values)


def target(us_by_batch: Mapping[int, float]) -> Target:
    """Targets of the cases of `TARGET_SIZES`, by their batch."""
    return Target("NVIDIA H200", lambda case: us_by_batch.get(case.batch) if case in TARGET_SIZES else None)


def make_logits(case: SimpleNamespace, device: torch.device) -> Work:
    logits = torch.randn(case.batch, case.vocab, device=device) * SPREAD[case.logits]
    return Work(
        logits=logits.to(getattr(case, "dtype", torch.float32)),
        top_k=getattr(case, "top_k", TOP_K),
        top_p=getattr(case, "top_p", TOP_P),
    )


def make_probs(case: SimpleNamespace, device: torch.device) -> Work:
    work = make_logits(case, device)
    work.probs = torch.softmax(work.logits, dim=-1)
    del work.logits
    return work


def source(work: Any) -> torch.Tensor:
    """Logits or probabilities, whichever the work begins with."""
    return work.logits if hasattr(work, "logits") else work.probs


def read(work: Any) -> float:
    return float(source(work).nbytes)


def read_and_write(work: Any) -> float:
    return float(source(work).nbytes + work.out.nbytes)


def tokens_agree(work: Any, actual: torch.Tensor, expected: torch.Tensor) -> None:
    """The same tokens, but for draws that fall within the rounding of a probability."""
    wrong = int((actual != expected).sum())
    if wrong > expected.numel() / 100:
        raise AssertionError(f"{wrong} of {expected.numel()} tokens differ")


def benchmark(name: str, call: Callable[..., Any], **more: Any) -> Benchmark:
    """What all have in common; `call` is ``call(work, backend=…)``, with ``out=…`` except for the reference."""
    common: dict[str, Any] = {"quick": SMALL, "check_rows": CHECKED_ROWS, "axis": "batch"}
    return Benchmark(
        name,
        ours=lambda work, backend: call(work, out=work.out, backend=backend),
        reference=lambda work: call(work, backend="reference"),
        **(common | more),
    )
