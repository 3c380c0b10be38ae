"""Fusion of neighbouring processors into fewer operator calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from warploom.core.errors import ArgumentError
from warploom.logits_processor.chain import Chain, ChainLink
from warploom.logits_processor.processor import LogitsProcessor, Stage
from warploom.logits_processor.types import TensorType
from warploom.sampling.steps import SOFTMAX

__all__ = ["BUILT_IN_RULES", "FusionRule", "fuse"]

_MOST_FUSIONS = 1000  # of one pipe: a rule that undoes what another does would go on for good


def _always(*stages: Stage) -> bool:
    return True


@dataclass(frozen=True)
class FusionRule:
    """Neighbouring processors that one processor replaces.

    Attributes
    ----------
    name : str
        Shown in errors.
    pattern : tuple of LogitsProcessor classes
        Classes of neighbours; subclasses match too.
    build : callable
        ``build(*stages)`` returns the processor that does what the matched ones do: it must take and give the same
        types and need no parameter that they did not.
    guard : callable
        ``guard(*stages)``: whether the rule applies to a match.

    Examples
    --------
    >>> import torch
    >>> from warploom.logits_processor import FusionRule, LogitsPipe, LogitsProcessor, Softmax, TensorType
    >>> class Double(LogitsProcessor):
    ...     transitions = {TensorType.LOGITS: TensorType.LOGITS}
    ...     def apply(self, tensor, input_type):
    ...         return tensor * 2
    >>> class DoubleSoftmax(LogitsProcessor):
    ...     transitions = {TensorType.LOGITS: TensorType.PROBS}
    ...     def apply(self, tensor, input_type):
    ...         return torch.softmax(tensor * 2, -1)
    >>> rule = FusionRule("double + softmax", (Double, Softmax), build=lambda *stages: DoubleSoftmax())
    >>> LogitsPipe([Double(), Softmax()], custom_fusion_rules=[rule])
    LogitsPipe(logits -> DoubleSoftmax -> probs)
    """

    name: str
    pattern: tuple[type[LogitsProcessor], ...]
    build: Callable[..., LogitsProcessor]
    guard: Callable[..., bool] = _always

    def matches(self, stages: Sequence[Stage]) -> bool:
        """Whether the first stages are what the rule replaces."""
        count = len(self.pattern)
        if len(stages) < count:
            return False
        found = stages[:count]
        fits = all(isinstance(stage.processor, wanted) for stage, wanted in zip(found, self.pattern, strict=True))
        return fits and self.guard(*found)

    def replace(self, stages: Sequence[Stage]) -> Stage:
        """The stage that replaces the matched ones."""
        fused, first, last = self.build(*stages), stages[0].input_type, stages[-1].output_type
        gives = fused.transitions.get(first)
        if gives is not last:
            got = f"{fused.name}, which gives {gives.value if gives else 'nothing'} for {first.value}"
            raise ArgumentError.of("LogitsPipe", f"fusion rule {self.name!r}", f"one that gives {last.value}", got)
        known = {name for s in stages for name in s.processor.parameters + s.processor.optional_parameters}
        extra = set(fused.parameters) - known
        if extra:
            expected = "one that needs the parameters of what it replaces"
            raise ArgumentError.of("LogitsPipe", f"fusion rule {self.name!r}", expected, f"also {sorted(extra)}")
        return Stage(fused, first, last)


def _link(stage: Stage) -> Chain:
    assert isinstance(stage.processor, ChainLink)
    return stage.processor.link(stage.input_type)


def _meets_at(where: TensorType, earlier: Stage, later: Stage) -> bool:
    return earlier.output_type is where and isinstance(later.processor, ChainLink)


def _before_softmax(earlier: Stage, later: Stage) -> bool:
    return _meets_at(TensorType.LOGITS, earlier, later) and SOFTMAX in _link(later).steps


def _after_softmax(earlier: Stage, later: Stage) -> bool:
    return _meets_at(TensorType.PROBS, earlier, later)


def _join(earlier: Stage, later: Stage) -> Chain:
    return _link(earlier).join(_link(later))


# Two pairwise rules fuse runs of any length. Temperature and a mask need a softmax behind them to be part of a chain.
BUILT_IN_RULES = (
    FusionRule("temperature or mask into a softmax", (ChainLink, ChainLink), _join, _before_softmax),
    FusionRule("filters and draw after a softmax", (ChainLink, ChainLink), _join, _after_softmax),
)


def fuse(stages: Sequence[Stage], rules: Sequence[FusionRule]) -> tuple[Stage, ...]:
    """Apply rules, the first that fits anywhere first, until none fits."""
    plan = list(stages)
    for _ in range(_MOST_FUSIONS):
        match = _find(plan, rules)
        if match is None:
            return tuple(plan)
        rule, start = match
        count = len(rule.pattern)
        plan[start : start + count] = [rule.replace(plan[start : start + count])]
    raise ArgumentError.of(
        "LogitsPipe", "custom_fusion_rules", "rules that come to an end", f"{rule.name!r} again and again"
    )


def _find(plan: Sequence[Stage], rules: Sequence[FusionRule]) -> tuple[FusionRule, int] | None:
    for rule in rules:
        for start in range(len(plan)):
            if rule.matches(plan[start:]):
                return rule, start
    return None
