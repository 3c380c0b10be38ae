"""The k largest of each row."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from warploom.core.backends import Explanation
from warploom.logits_processor.chain import Chain, ChainLink
from warploom.logits_processor.types import TensorType
from warploom.sampling.renorm import TOP_K_MASK, describe_mask, top_k_mask_logits

__all__ = ["TopK"]


class TopK(ChainLink):
    """Keep the `top_k` largest, a number or one a row. Logits to logits (others −inf), probabilities to probabilities.

    See `warploom.top_k_mask_logits` and `warploom.top_k_renorm_probs`.

    Parameters
    ----------
    joint_topk_topp : bool
        Before a `TopP`: take both filters of the whole distribution and keep what passes both, instead of taking top-p
        of what top-k has kept. The pipe then runs the two in the other order, which means the same.

    Examples
    --------
    >>> import torch
    >>> from warploom.logits_processor import LogitsPipe, TensorType, TopK
    >>> LogitsPipe([TopK()], input_type=TensorType.LOGITS)(torch.tensor([[1.0, 3.0, 2.0]]), top_k=2)
    tensor([[-inf, 3., 2.]])
    """

    transitions: ClassVar = {TensorType.LOGITS: TensorType.LOGITS, TensorType.PROBS: TensorType.PROBS}
    parameters = ("top_k",)
    optional_parameters = ("backend",)

    def __init__(self, joint_topk_topp: bool = False) -> None:
        self.joint_topk_topp = joint_topk_topp

    def link(self, input_type: TensorType) -> Chain:
        return Chain((self.name,), ("top_k",))

    def apply(self, tensor: torch.Tensor, input_type: TensorType, **parameters: Any) -> Any:
        if input_type is TensorType.LOGITS:
            return top_k_mask_logits(tensor, **parameters)
        return super().apply(tensor, input_type, **parameters)

    def explain(self, tensor: torch.Tensor, input_type: TensorType, backend: str = "auto") -> Explanation | None:
        if input_type is TensorType.LOGITS:
            return TOP_K_MASK.explain(describe_mask(tensor), backend)
        return super().explain(tensor, input_type, backend)
