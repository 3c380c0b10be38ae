"""`LogitsPipe`: processors composed into one callable."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from warploom.core.backends import Explanation
from warploom.core.errors import ArgumentError
from warploom.logits_processor.fusion import BUILT_IN_RULES, FusionRule, fuse
from warploom.logits_processor.processor import LogitsProcessor, Stage
from warploom.logits_processor.processors.top_k import TopK
from warploom.logits_processor.processors.top_p import TopP
from warploom.logits_processor.types import TensorType
from warploom.logits_processor.validity import ValidityCheck, resolve

__all__ = ["LogitsPipe", "PipeExplanation"]

_EXAMPLE_VOCAB = 128256


class LogitsPipe:
    """A pipe from logits or probabilities to logits, probabilities or tokens.

    Parameters
    ----------
    processors : sequence of LogitsProcessor
        In their order.
    compile : bool
        Fuse neighbours into the fewest operator calls. The result means the same: with the same seed the same tokens,
        but for draws that fall within the rounding of probabilities computed apart, and after a `TopP`: a fused draw
        rejects what lies outside the nucleus and draws again (`warploom.sampling.steps`), from the same distribution.
    input_type : TensorType, optional
        What the pipe is called with; needed only when its processors accept both logits and probabilities.
    custom_fusion_rules : sequence of FusionRule, optional
        Tried before the built-in ones.
    custom_validity_checks : sequence of callable, optional
        Each gets the processors and returns a `Violation` or None.

    Attributes
    ----------
    processors : tuple of LogitsProcessor
        As they run without fusion.
    plan : tuple of Stage
        What a call runs.

    Raises
    ------
    PipeOrderError
        The processors do not go together in this order; it names the pair, the reason and the nearest valid order.
    ArgumentError
        No processors; or an ambiguous input type; or a fusion rule that breaks its promise.

    Examples
    --------
    >>> import torch
    >>> from warploom.logits_processor import LogitsPipe, Sample, Softmax, Temperature, TopP
    >>> pipe = LogitsPipe([Temperature(), Softmax(), TopP(), Sample()])
    >>> pipe(torch.tensor([[0.0, 3.0, 1.0]]), temperature=0.7, top_p=0.9, seed=1)
    tensor([1], dtype=torch.int32)
    >>> pipe
    LogitsPipe(logits -> Temperature + Softmax + TopP + Sample -> indices)
    """

    def __init__(
        self,
        processors: Sequence[LogitsProcessor],
        compile: bool = True,
        input_type: TensorType | None = None,
        custom_fusion_rules: Sequence[FusionRule] | None = None,
        custom_validity_checks: Sequence[ValidityCheck] | None = None,
    ) -> None:
        self.processors = _joint_filters_in_order(_checked(processors))
        stages = resolve(self.processors, input_type, tuple(custom_validity_checks or ()))
        rules = (*(custom_fusion_rules or ()), *BUILT_IN_RULES)
        self.plan: tuple[Stage, ...] = fuse(stages, rules) if compile else stages
        self._needed = _names(stage.processor.parameters for stage in self.plan)
        self._known = (*self._needed, *_names(stage.processor.optional_parameters for stage in self.plan), "backend")

    @property
    def input_type(self) -> TensorType:
        """What the pipe is called with."""
        return self.plan[0].input_type

    @property
    def output_type(self) -> TensorType:
        """What it returns."""
        return self.plan[-1].output_type

    def __call__(self, tensor: torch.Tensor, **parameters: Any) -> Any:
        """Run the pipe.

        Parameters
        ----------
        tensor : torch.Tensor
            ``[rows, vocab]``, logits or probabilities as `input_type` says.
        **parameters
            Those of the processors, numbers or one value a row: `temperature`, `top_k`, `top_p`, `min_p`, what `Sample`
            takes, what the user's own processors name; and `backend`, for the operators behind all stages.

        Returns
        -------
        torch.Tensor
            Of `output_type`; a pair with the flags of valid rows if `return_valid` is given to a `Sample`.

        Raises
        ------
        ArgumentError
            A parameter is missing, unknown, or wrong.
        """
        self._check_names(parameters)
        for stage in self.plan:
            processor = stage.processor
            taken = processor.parameters + processor.optional_parameters
            given = {name: parameters[name] for name in taken if name in parameters}
            tensor = processor.apply(tensor, stage.input_type, **given)
        return tensor

    def explain(self, tensor: torch.Tensor | None = None, backend: str = "auto") -> PipeExplanation:
        """The plan and the backend of each step; ``str()`` and ``print`` show it.

        Parameters
        ----------
        tensor : torch.Tensor, optional
            An input, of which shape, dtype and device decide; by default one float32 row of 128256 on the GPU, or on
            the CPU where there is none.
        backend : str
            As in a call.
        """
        if tensor is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
            tensor = torch.empty(1, device=device).expand(1, _EXAMPLE_VOCAB)
        steps = []
        now = tensor
        for stage in self.plan:
            steps.append(PlanStep(stage, stage.processor.explain(now, stage.input_type, backend)))
            if stage.output_type is TensorType.PROBS and stage.input_type is TensorType.LOGITS:
                now = now.to(torch.float32)
        return PipeExplanation(tuple(steps), tensor)

    def __repr__(self) -> str:
        names = " -> ".join(stage.processor.name for stage in self.plan)
        return f"LogitsPipe({self.input_type.value} -> {names} -> {self.output_type.value})"

    def _check_names(self, parameters: dict[str, Any]) -> None:
        for name in self._needed:
            if name not in parameters:
                owners = [processor.name for processor in self.processors if name in processor.parameters]
                hint = f"{' and '.join(owners)} need{'s' if len(owners) == 1 else ''} it."
                raise ArgumentError.of("LogitsPipe", name, "given by keyword", "nothing", hint)
        for name in parameters:
            if name not in self._known:
                near = difflib.get_close_matches(name, self._known, n=1)
                hint = f"Did you mean `{near[0]}`?" if near else ""
                expected = f"one of the pipe's parameters ({', '.join(self._known)})"
                raise ArgumentError.of("LogitsPipe", name, expected, "an unknown name", hint)


@dataclass(frozen=True)
class PlanStep:
    """One stage, and the backend table of the operator behind it if there is one."""

    stage: Stage
    backend: Explanation | None

    def __str__(self) -> str:
        stage = self.stage
        flow = f"{stage.processor.name}: {stage.input_type.value} -> {stage.output_type.value}"
        if self.backend is None:
            return f"{flow}, in Python"
        steps = getattr(self.backend.problem, "steps", None)
        chain = f"({', '.join(steps)})" if steps else ""
        return f"{flow}, operator {self.backend.operator}{chain}, backend {self.backend.chosen} ({self.backend.why})"


@dataclass(frozen=True)
class PipeExplanation:
    """What a pipe runs for an input, step by step. ``str()`` and ``repr()`` show it."""

    steps: tuple[PlanStep, ...]
    tensor: torch.Tensor

    def __str__(self) -> str:
        shape, dtype = list(self.tensor.shape), str(self.tensor.dtype).removeprefix("torch.")
        head = f"LogitsPipe in {len(self.steps)} step{'s' if len(self.steps) > 1 else ''}"
        lines = [f"{head} for {dtype} {shape} on {self.tensor.device}"]
        return "\n".join(lines + [f"  {number}. {step}" for number, step in enumerate(self.steps, 1)])

    __repr__ = __str__


def _checked(processors: Sequence[LogitsProcessor]) -> tuple[LogitsProcessor, ...]:
    found = tuple(processors)
    wrong = next((p for p in found if not isinstance(p, LogitsProcessor)), None)
    if not found or wrong is not None:
        hint = f"Call it: {wrong.__name__}()." if isinstance(wrong, type) else ""
        got = "none" if not found else repr(wrong)
        raise ArgumentError.of("LogitsPipe", "processors", "one or more LogitsProcessor objects", got, hint)
    return found


def _joint_filters_in_order(processors: tuple[LogitsProcessor, ...]) -> tuple[LogitsProcessor, ...]:
    """Exchange TopK(joint_topk_topp=True) with a TopP behind it: the top k of the nucleus is what passes both."""
    order = list(processors)
    for i in range(len(order) - 1):
        first, second = order[i], order[i + 1]
        if isinstance(first, TopK) and first.joint_topk_topp and isinstance(second, TopP):
            order[i], order[i + 1] = second, first
    return tuple(order)


def _names(groups: Any) -> tuple[str, ...]:
    """All names once, in their order."""
    return tuple(dict.fromkeys(name for group in groups for name in group))
