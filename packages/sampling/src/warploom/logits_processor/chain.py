"""Runs of built-in processors as one operator.

Every built-in processor is a link: a piece of the filter chains (`warploom.sampling.steps`) that the operators behind
this package serve as a whole. Joining links is what fusion does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from warploom.core.backends import Explanation
from warploom.core.tensors import as_tensor
from warploom.logits_processor.processor import LogitsProcessor
from warploom.logits_processor.types import TensorType
from warploom.sampling import renorm, sample
from warploom.sampling.softmax import SOFTMAX as SOFTMAX_OPERATOR
from warploom.sampling.softmax import describe as describe_softmax
from warploom.sampling.softmax import softmax
from warploom.sampling.steps import FILTERS, SOFTMAX, Steps

__all__ = ["DRAW_PARAMETERS", "Chain", "ChainLink"]

DRAW_PARAMETERS = ("indices", "generator", "check_nan", "seed", "offset", "return_valid", "out")
_OP = "LogitsPipe"


class ChainLink(LogitsProcessor):
    """A processor that is a piece of a chain."""

    def link(self, input_type: TensorType) -> Chain:
        """The piece, which depends on what it is applied to."""
        raise NotImplementedError

    def apply(self, tensor: torch.Tensor, input_type: TensorType, **parameters: Any) -> Any:
        return self.link(input_type).apply(tensor, input_type, **parameters)

    def explain(self, tensor: torch.Tensor, input_type: TensorType, backend: str = "auto") -> Explanation | None:
        return self.link(input_type).explain(tensor, input_type, backend)


@dataclass(frozen=True, repr=False)
class Chain(ChainLink):
    """One or several built-in processors in one operator call.

    Attributes
    ----------
    names : tuple of str
        The processors that it stands for.
    steps : tuple of str
        The filter chain.
    scaled : bool
        Whether the softmax divides by a temperature.
    draws : bool
        Whether a token is drawn at the end; otherwise the distribution is the result.
    deterministic : bool
        Of the draw.
    """

    names: tuple[str, ...]
    steps: Steps = ()
    scaled: bool = False
    draws: bool = False
    deterministic: bool = True

    @property
    def name(self) -> str:
        return " + ".join(self.names)

    @property
    def transitions(self) -> Mapping[TensorType, TensorType]:  # type: ignore[override]
        source = TensorType.LOGITS if SOFTMAX in self.steps else TensorType.PROBS
        return {source: TensorType.INDICES if self.draws else TensorType.PROBS}

    @property
    def parameters(self) -> tuple[str, ...]:  # type: ignore[override]
        return (("temperature",) if self.scaled else ()) + tuple(step for step in self.steps if step in FILTERS)

    @property
    def optional_parameters(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*DRAW_PARAMETERS, "backend") if self.draws else ("backend",)

    def link(self, input_type: TensorType) -> Chain:
        return self

    def join(self, later: Chain) -> Chain:
        """Both as one; the caller has made sure that this has a meaning."""
        scaled = self.scaled or later.scaled
        return replace(later, names=self.names + later.names, steps=self.steps + later.steps, scaled=scaled)

    def apply(self, tensor: torch.Tensor, input_type: TensorType, **parameters: Any) -> Any:
        filters = {name: parameters.pop(name) for name in self.parameters}
        if self.draws:
            filters = {name: _of_outputs(value, parameters.get("indices")) for name, value in filters.items()}
            options = sample.DrawOptions(deterministic=self.deterministic, **parameters)
            return sample.draw(_OP, tensor, self.steps, filters, options)
        if self.steps == (SOFTMAX,):
            return softmax(tensor, filters.get("temperature"), **parameters)
        return renorm.renorm(_OP, tensor, self.steps, filters, **parameters)

    def explain(self, tensor: torch.Tensor, input_type: TensorType, backend: str = "auto") -> Explanation | None:
        if self.draws:
            drawing = sample.describe(tensor, tensor.shape[0], self.steps, self.deterministic)
            return sample.SAMPLE.explain(drawing, backend)
        if self.steps == (SOFTMAX,):
            return SOFTMAX_OPERATOR.explain(describe_softmax(tensor), backend)
        dtype = torch.float32 if SOFTMAX in self.steps else tensor.dtype
        return renorm.RENORM.explain(renorm.describe(tensor, self.steps, dtype), backend)

    def __repr__(self) -> str:
        return f"Chain({self.name})"


def _of_outputs(value: Any, indices: torch.Tensor | None) -> Any:
    """Parameters of a pipe belong to rows of its input, those of the operator to the outputs that `indices` makes."""
    if indices is None or not hasattr(value, "__dlpack__"):
        return value
    rows = as_tensor(value, _OP).reshape(-1)
    return rows if rows.numel() == 1 else rows.index_select(0, indices.clamp(0, rows.numel() - 1))
