"""From logits to probabilities."""

from __future__ import annotations

from typing import ClassVar

from warploom.logits_processor.chain import Chain, ChainLink
from warploom.logits_processor.types import TensorType
from warploom.sampling.steps import SOFTMAX

__all__ = ["Softmax"]


class Softmax(ChainLink):
    """Softmax of each row. Logits to probabilities (float32). See `warploom.softmax`.

    Examples
    --------
    >>> import torch
    >>> from warploom.logits_processor import LogitsPipe, Softmax
    >>> LogitsPipe([Softmax()])(torch.zeros(1, 4))
    tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """

    transitions: ClassVar = {TensorType.LOGITS: TensorType.PROBS}
    optional_parameters = ("backend",)

    def link(self, input_type: TensorType) -> Chain:
        return Chain((self.name,), (SOFTMAX,))
