"""Scaling of logits."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from warploom.core.backends import Explanation
from warploom.core.tensors import Checker
from warploom.logits_processor.chain import Chain, ChainLink
from warploom.logits_processor.types import TensorType
from warploom.sampling.backends.reference.softmax import shifted_logits
from warploom.sampling.parameters import source_tensor, temperature_parameter

__all__ = ["Temperature"]


class Temperature(ChainLink):
    """Divide logits by the parameter `temperature`, a number or one a row. Logits to logits (float32).

    A negative or NaN temperature gives NaN. Where the quotients overflow, and at 0, a row comes out less a constant,
    which makes its largest logit 0 and leaves its softmax as it is. Infinity gives (almost) 0 for all that are not −inf.

    Examples
    --------
    >>> import torch
    >>> from warploom.logits_processor import LogitsPipe, Temperature
    >>> LogitsPipe([Temperature()])(torch.tensor([[1.0, 2.0]]), temperature=0.5)
    tensor([[2., 4.]])
    """

    transitions: ClassVar = {TensorType.LOGITS: TensorType.LOGITS}
    parameters = ("temperature",)

    def link(self, input_type: TensorType) -> Chain:
        return Chain((self.name,), scaled=True)

    def apply(self, tensor: torch.Tensor, input_type: TensorType, **parameters: Any) -> torch.Tensor:
        check = Checker(self.name)
        logits = source_tensor(check, "logits", tensor).to(torch.float32)
        row_temperature = temperature_parameter(check, parameters["temperature"], check["batch"])
        divisor = row_temperature.column(logits, torch.float32)
        scaled = logits / torch.where(divisor >= 0, divisor, torch.nan).clamp(max=torch.finfo(torch.float32).max)
        # Where quotients overflow, those of the differences to the largest logit stand for the same distribution.
        shifted, _ = shifted_logits(logits, row_temperature)
        overflows = (torch.isinf(scaled) & torch.isfinite(logits)).any(-1, keepdim=True)
        return torch.where(overflows | (divisor == 0), shifted, scaled)

    def explain(self, tensor: torch.Tensor, input_type: TensorType, backend: str = "auto") -> Explanation | None:
        return None  # arithmetic of torch
