"""What a processor of a pipe is: the base class of the built-in ones and of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from warploom.core.backends import Explanation
from warploom.logits_processor.types import TensorType

__all__ = ["LogitsProcessor", "Stage"]


class LogitsProcessor:
    """One transformation of a `LogitsPipe`.

    Subclasses state what they take and give, name the parameters that they need at each call, and define `apply`.

    Attributes
    ----------
    transitions : mapping of TensorType to TensorType
        What comes out for each type of input that is accepted.
    parameters : tuple of str
        Keywords that every call of the pipe must give.
    optional_parameters : tuple of str
        Keywords that a call may give.

    Examples
    --------
    >>> import torch
    >>> from warploom.logits_processor import LogitsPipe, LogitsProcessor, Softmax, TensorType
    >>> class Bias(LogitsProcessor):
    ...     '''Adds a bias to some tokens.'''
    ...     transitions = {TensorType.LOGITS: TensorType.LOGITS}
    ...     parameters = ("bias",)
    ...     def apply(self, tensor, input_type, *, bias):
    ...         return tensor + bias
    >>> pipe = LogitsPipe([Bias(), Softmax()])
    >>> pipe(torch.zeros(1, 2), bias=torch.tensor([0.0, -torch.inf]))
    tensor([[1., 0.]])
    """

    transitions: ClassVar[Mapping[TensorType, TensorType]]
    parameters: tuple[str, ...] = ()
    optional_parameters: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """How messages and plans call it."""
        return type(self).__name__

    def apply(self, tensor: torch.Tensor, input_type: TensorType, **parameters: Any) -> Any:
        """Transform `tensor`, which is of `input_type`; gets those of its parameters that the call gave.

        To work inside ``torch.compile`` and CUDA graphs it must not read values back to the host.
        """
        raise NotImplementedError(f"{self.name} does not define apply")

    def explain(self, tensor: torch.Tensor, input_type: TensorType, backend: str = "auto") -> Explanation | None:
        """The backend table of the operator that would serve `tensor`; None if there is none behind it."""
        return None

    def __repr__(self) -> str:
        return f"{self.name}()"


@dataclass(frozen=True)
class Stage:
    """A processor at its place in a pipe, where the type of its input is known."""

    processor: LogitsProcessor
    input_type: TensorType
    output_type: TensorType

    @classmethod
    def at(cls, processor: LogitsProcessor, input_type: TensorType) -> Stage:
        """Place a processor that accepts `input_type`."""
        return cls(processor, input_type, processor.transitions[input_type])
