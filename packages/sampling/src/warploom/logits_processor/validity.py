"""Which orders of processors have a meaning, and the nearest one that has when an order has none."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from warploom.core.errors import ArgumentError
from warploom.logits_processor.chain import ChainLink
from warploom.logits_processor.processor import LogitsProcessor, Stage
from warploom.logits_processor.processors.softmax import Softmax
from warploom.logits_processor.types import TensorType

__all__ = ["PipeOrderError", "ValidityCheck", "Violation", "nearest_valid_order", "resolve"]

_MOST_ORDERS = 20000  # tried in search of a valid one
_MOVE, _ADD, _LEAVE_OUT = 2, 3, 5  # prices of edits: what the user wrote is kept as long as it can be


@dataclass(frozen=True)
class Violation:
    """Why an order has no meaning.

    Attributes
    ----------
    first, second : str
        Names of the pair of processors that do not go together, in their order; `first` is "" if `second` can not come
        first.
    reason : str
        Why.
    """

    first: str
    second: str
    reason: str

    def __str__(self) -> str:
        place = f"follow {self.first}" if self.first else "come first"
        return f"{self.second} can not {place}: {self.reason}"


ValidityCheck = Callable[[Sequence[LogitsProcessor]], Violation | None]


class PipeOrderError(ArgumentError):
    """The processors of a pipe do not go together in this order.

    Attributes
    ----------
    violation : Violation
        The offending pair and the reason.
    nearest : tuple of str
        Names of the nearest valid order; empty if none was found.

    Examples
    --------
    >>> from warploom.logits_processor import LogitsPipe, Sample, Softmax, Temperature
    >>> LogitsPipe([Softmax(), Temperature(), Sample()])
    Traceback (most recent call last):
    ...
    warploom.logits_processor.validity.PipeOrderError: LogitsPipe: Temperature can not follow Softmax: Temperature takes
    logits, Softmax gives probs. Nearest valid order: Temperature, Softmax, Sample.
    """

    def __init__(self, violation: Violation, nearest: Sequence[str]) -> None:
        self.violation = violation
        self.nearest = tuple(nearest)
        advice = f" Nearest valid order: {', '.join(nearest)}." if nearest else ""
        super().__init__(f"LogitsPipe: {violation}.{advice}")

    def __reduce__(self) -> tuple[type, tuple[Violation, tuple[str, ...]]]:
        return type(self), (self.violation, self.nearest)


def resolve(
    processors: Sequence[LogitsProcessor], input_type: TensorType | None, checks: Sequence[ValidityCheck]
) -> tuple[Stage, ...]:
    """Give every processor the type of its input.

    Raises
    ------
    PipeOrderError
        The order has no meaning.
    ArgumentError
        It has one for logits and another for probabilities, and `input_type` does not say which.
    """
    candidates = [input_type] if input_type else list(processors[0].transitions)
    violations = {kind: _violation(processors, kind, checks) for kind in candidates}
    valid = [kind for kind, violation in violations.items() if violation is None]
    if len(valid) > 1:
        kinds = " and ".join(kind.value for kind in valid)
        expected = "TensorType.LOGITS or TensorType.PROBS"
        raise ArgumentError.of("LogitsPipe", "input_type", expected, "None", f"This pipe can start with {kinds}.")
    if not valid:
        worst = violations[candidates[0]]
        assert worst is not None
        wanted = [input_type] if input_type else [TensorType.LOGITS, TensorType.PROBS]
        nearest = nearest_valid_order(processors, wanted, checks)
        raise PipeOrderError(worst, [processor.name for processor in nearest])
    stages, kind = [], valid[0]
    for processor in processors:
        stages.append(Stage.at(processor, kind))
        kind = stages[-1].output_type
    return tuple(stages)


def _violation(
    processors: Sequence[LogitsProcessor], input_type: TensorType, checks: Sequence[ValidityCheck]
) -> Violation | None:
    before, kind = "", input_type
    for processor in processors:
        if kind not in processor.transitions:
            takes = " or ".join(accepted.value for accepted in processor.transitions)
            source = f"{before} gives" if before else "the input is"
            return Violation(before, processor.name, f"{processor.name} takes {takes}, {source} {kind.value}")
        before, kind = processor.name, processor.transitions[kind]
    found = (check(processors) for check in (_no_repetition, *checks))
    return next((violation for violation in found if violation is not None), None)


def _no_repetition(processors: Sequence[LogitsProcessor]) -> Violation | None:
    seen: dict[type, str] = {}
    for processor in processors:
        kind = type(processor)
        if isinstance(processor, ChainLink) and kind in seen:
            reason = (
                f"there is one already, and calls give {', '.join(processor.parameters) or 'parameters'} by keyword"
            )
            return Violation(processor.name, processor.name, reason)
        seen[kind] = processor.name
    return None


def nearest_valid_order(
    processors: Sequence[LogitsProcessor], input_types: Sequence[TensorType], checks: Sequence[ValidityCheck]
) -> tuple[LogitsProcessor, ...]:
    """The valid order that takes the cheapest edits: moving processors, adding a softmax, leaving processors out."""
    softmax = Softmax()
    queue: list[tuple[int, int, tuple[LogitsProcessor, ...]]] = [(0, 0, tuple(processors))]
    found = 1  # orders are taken as they were found among those of equal cost
    seen: set[tuple[int, ...]] = set()
    while queue and len(seen) < _MOST_ORDERS:
        cost, _, order = heapq.heappop(queue)
        key = tuple(map(id, order))
        if key in seen:
            continue
        seen.add(key)
        if any(_violation(order, kind, checks) is None for kind in input_types):
            return order
        for price, edited in _edits(order, softmax):
            heapq.heappush(queue, (cost + price, found, edited))
            found += 1
    return ()


def _edits(order: tuple[LogitsProcessor, ...], softmax: Softmax) -> Iterator[tuple[int, tuple[LogitsProcessor, ...]]]:
    """Orders one edit away, with its price."""
    places = range(len(order))
    # Neighbours change places first: of several valid orders the one nearest to what was written is named.
    moves = sorted(itertools.permutations(places, 2), key=lambda move: abs(move[0] - move[1]))
    for source, to in moves:
        rest = order[:source] + order[source + 1 :]
        yield _MOVE, (*rest[:to], order[source], *rest[to:])
    if not any(isinstance(processor, Softmax) for processor in order):
        for place in range(len(order) + 1):
            yield _ADD, (*order[:place], softmax, *order[place:])
    for place in places:
        if len(order) > 1:
            yield _LEAVE_OUT, order[:place] + order[place + 1 :]
