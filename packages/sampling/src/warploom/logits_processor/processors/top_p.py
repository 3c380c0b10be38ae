"""The nucleus of each row."""

from __future__ import annotations

from typing import ClassVar

from warploom.logits_processor.chain import Chain, ChainLink
from warploom.logits_processor.types import TensorType

__all__ = ["TopP"]


class TopP(ChainLink):
    """Keep the most probable tokens that make up `top_p`, a number or one a row. Probabilities to probabilities.

    See `warploom.top_p_renorm_probs`.

    Examples
    --------
    >>> import torch
    >>> from warploom.logits_processor import LogitsPipe, TopP
    >>> LogitsPipe([TopP()])(torch.tensor([[0.5, 0.25, 0.125, 0.125]]), top_p=0.75)
    tensor([[0.6667, 0.3333, 0.0000, 0.0000]])
    """

    transitions: ClassVar = {TensorType.PROBS: TensorType.PROBS}
    parameters = ("top_p",)
    optional_parameters = ("backend",)

    def link(self, input_type: TensorType) -> Chain:
        return Chain((self.name,), ("top_p",))
