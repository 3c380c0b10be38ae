"""What is not much less probable than the best."""

from __future__ import annotations

from typing import ClassVar

from warploom.logits_processor.chain import Chain, ChainLink
from warploom.logits_processor.types import TensorType

__all__ = ["MinP"]


class MinP(ChainLink):
    """Keep tokens with at least `min_p` times the largest probability of the row. Probabilities to probabilities.

    See `warploom.min_p_renorm_probs`.

    Examples
    --------
    >>> import torch
    >>> from warploom.logits_processor import LogitsPipe, MinP
    >>> LogitsPipe([MinP()])(torch.tensor([[0.5, 0.25, 0.125, 0.125]]), min_p=0.5)
    tensor([[0.6667, 0.3333, 0.0000, 0.0000]])
    """

    transitions: ClassVar = {TensorType.PROBS: TensorType.PROBS}
    parameters = ("min_p",)
    optional_parameters = ("backend",)

    def link(self, input_type: TensorType) -> Chain:
        return Chain((self.name,), ("min_p",))
