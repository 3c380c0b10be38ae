"""Drawing a token from each row."""

from __future__ import annotations

from typing import ClassVar

from warploom.logits_processor.chain import DRAW_PARAMETERS, Chain, ChainLink
from warploom.logits_processor.types import TensorType
from warploom.sampling.steps import SOFTMAX

__all__ = ["Sample"]


class Sample(ChainLink):
    """Draw one token from each row. Logits (through their softmax) or probabilities to indices: it ends a pipe.

    Calls may give `indices`, `generator`, `check_nan`, `seed`, `offset`, `return_valid` and `out`, see
    `warploom.sampling_from_probs`. With `indices`, seeds and offsets belong to outputs; the parameters of the filters
    before the draw still belong to rows of the pipe's input.

    Parameters
    ----------
    deterministic : bool
        Demand that a row's token does not depend on the rest of the batch.

    Examples
    --------
    >>> import torch
    >>> from warploom.logits_processor import LogitsPipe, Sample, TopP
    >>> LogitsPipe([TopP(), Sample()])(torch.tensor([[0.1, 0.6, 0.3]]), top_p=0.5)
    tensor([1], dtype=torch.int32)
    """

    transitions: ClassVar = {TensorType.LOGITS: TensorType.INDICES, TensorType.PROBS: TensorType.INDICES}
    optional_parameters = (*DRAW_PARAMETERS, "backend")

    def __init__(self, deterministic: bool = True) -> None:
        self.deterministic = deterministic

    def link(self, input_type: TensorType) -> Chain:
        steps = (SOFTMAX,) if input_type is TensorType.LOGITS else ()
        return Chain((self.name,), steps, draws=True, deterministic=self.deterministic)
