"""What a benchmark is: cases, how to make their inputs, our call, the peers' calls, what it costs and should cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch

from warploom.core.testing.compare import assert_close

__all__ = ["Benchmark", "Peer", "Target", "Work"]


class Work(SimpleNamespace):
    """Inputs and outputs of one case, by attribute: whatever `Benchmark.make` puts in, plus `case` itself.

    A tensor (or tuple of tensors) in `out` is poisoned with NaN before each verification, so that an element that a
    contender does not write is seen.
    """


def _always(work: Any) -> str:
    return ""


def _as_it_is(result: Any) -> Any:
    return result


@dataclass(frozen=True)
class Peer:
    """Another implementation of the same operation.

    Attributes
    ----------
    name : str
        As printed, e.g. ``"cudnn"``.
    fn : callable
        ``fn(work)`` computes the result; this is what is timed.
    available : callable
        ``available(work)`` returns "" or why the peer can't run this case here, e.g. ``"flashinfer is not installed"``.
    output : callable
        Brings the result of `fn` into the form of the reference's for verification. Not timed.
    verified : bool
        False for peers that compute something comparable in cost but not equal in value; say so in the name.
    """

    name: str
    fn: Callable[[Any], Any]
    available: Callable[[Any], str] = _always
    output: Callable[[Any], Any] = _as_it_is
    verified: bool = True


@dataclass(frozen=True)
class Target:
    """What cases should take on one GPU. It is shown beside what they take, and fails nothing.

    Attributes
    ----------
    gpu : str
        The GPU by its driver's name, e.g. ``"NVIDIA H200"``: on others there is no target.
    us : callable
        ``us(case)`` returns microseconds, or None for a case that has no target.
    """

    gpu: str
    us: Callable[[SimpleNamespace], float | None]


def compare_all(work: Any, actual: Any, expected: Any) -> None:
    """Compare tensor with tensor, and sequences of tensors item by item; None in `expected` is not compared.

    Raises
    ------
    AssertionError
        A value is off by more than the rounding of its dtype explains, or the number of results differs.
    """
    if isinstance(expected, torch.Tensor):
        assert_close(actual, expected)
        return
    if len(actual) != len(expected):
        raise AssertionError(f"got {len(actual)} results, expected {len(expected)}")
    for index, (got, want) in enumerate(zip(actual, expected, strict=True)):
        if want is not None:
            assert_close(got, want, what=f"result {index}")


@dataclass(frozen=True)
class Benchmark:
    """One operation at several sizes, ours against its peers.

    Attributes
    ----------
    name : str
        As printed and filtered by.
    cases : sequence of SimpleNamespace
        The sizes, from `grid(...)`.
    make : callable
        ``make(case, device)`` returns the `Work`: random normal inputs (never zeros, which run faster and hide faults)
        and outputs.
    ours : callable
        ``ours(work, backend)`` calls the public operator and returns its result.
    reference : callable, optional
        ``reference(work)`` returns the expected result; None is taken when only `check` can tell.
    peers : sequence of Peer
        In the order in which they are printed.
    bytes, flops : callable
        ``bytes(work)`` and ``flops(work)``: the least that must be moved and computed. They give the limit that the
        share of the ceiling refers to: the slower of ``bytes`` at the machine's memory rate and ``flops`` at its `math`
        rate.
    least_us : callable, optional
        ``least_us(work)``, the time of what no ceiling of one GPU says, such as links between several; the limit is at least
        that.
    math : str
        Which matrix-product ceiling applies: ``"bf16"``, ``"fp8"`` or ``"fp32"``.
    operator : str
        The `Operator` behind the call, whose backends ``tools/tune`` measures; by default `name`.
    check : callable
        ``check(work, actual, expected)`` raises AssertionError; by default `compare_all`.
    check_rows : int
        Not 0: only so many rows are compared, for references that need many times the memory of what they check.
        `reference` then gets a work in which every tensor is cut to its first rows, and so is the `actual` of `check`:
        rows must be the first dimension of all tensors and mean the same without those after them. Of the other rows it
        is checked that they were written.
    quick : sequence of SimpleNamespace
        Cases of ``--quick`` and of CPU runs; by default the first case.
    calls : int
        Calls in one CUDA graph; their time is divided by it. More than 1 is for collectives, where it evens out how far
        apart the ranks start.
    flush : bool
        Flush the L2 before each run. False only with `calls` above 1, where a flush would come before the first alone.
    axis : str
        A numeric parameter of the cases that the chart shows as lines of time over it, e.g. ``"batch"``: a panel for
        each setting of the others. Without it the chart has a bar for each contender of each case.
    target : Target, optional
        What cases should take.

    Examples
    --------
    >>> from warploom.core.bench import grid
    >>> scale = Benchmark(
    ...     "scale", cases=grid(n=[1024]),
    ...     make=lambda case, device: Work(x=torch.randn(case.n, device=device)),
    ...     ours=lambda work, backend: work.x * 2, reference=lambda work: work.x + work.x,
    ...     peers=[Peer("add", fn=lambda work: work.x + work.x)], bytes=lambda work: 2 * work.x.nbytes)
    >>> scale.operator
    'scale'
    """

    name: str
    cases: Sequence[SimpleNamespace]
    make: Callable[[SimpleNamespace, torch.device], Any]
    ours: Callable[[Any, str], Any]
    reference: Callable[[Any], Any] | None = None
    peers: Sequence[Peer] = ()
    bytes: Callable[[Any], float] | None = None
    flops: Callable[[Any], float] | None = None
    least_us: Callable[[Any], float] | None = None
    math: str = "bf16"
    operator: str = ""
    check: Callable[[Any, Any, Any], None] = compare_all
    check_rows: int = 0
    quick: Sequence[SimpleNamespace] = field(default=())
    calls: int = 1
    flush: bool = True
    axis: str = ""
    target: Target | None = None

    def __post_init__(self) -> None:
        if not self.operator:
            object.__setattr__(self, "operator", self.name)

    def cases_for(self, quick: bool) -> Sequence[SimpleNamespace]:
        """The cases of a full or of a quick run."""
        return (self.quick or self.cases[:1]) if quick else self.cases

    def target_us(self, case: SimpleNamespace, gpu: str) -> float | None:
        """Microseconds that a case should take on the GPU of that name."""
        return self.target.us(case) if self.target and self.target.gpu == gpu else None

    def prepare(self, case: SimpleNamespace, device: torch.device) -> Any:
        """Make the work of a case."""
        work = self.make(case, device)
        work.case = case
        return work
