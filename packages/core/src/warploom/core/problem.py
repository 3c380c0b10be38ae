"""The base of the frozen dataclasses that describe one request to an operator."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch

from warploom.core.device import arch_number, device_name

__all__ = ["Problem"]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a backend needs to know to accept or refuse a request. Hashable: selections are cached by it.

    Families derive one dataclass per operator, with the sizes, dtypes and options that decide.

    Attributes
    ----------
    device_type : str
        ``"cpu"`` or ``"cuda"``.
    arch : int
        Compute capability as one number (90 for sm_90), 0 on the CPU.
    device_name : str
        The GPU's name, by which tuning tables are chosen.
    untuned : frozenset of str
        Fields that no measurement depends on, of the class.

    Examples
    --------
    >>> import torch
    >>> Problem(**Problem.where(torch.zeros(1)))
    Problem(device_type='cpu', arch=0, device_name='cpu')
    """

    untuned: ClassVar[frozenset[str]] = frozenset()

    device_type: str = "cpu"
    arch: int = 0
    device_name: str = "cpu"

    @staticmethod
    def where(at: torch.Tensor | torch.device) -> dict[str, Any]:
        """The three device fields of the tensor's or the given device."""
        device = at.device if isinstance(at, torch.Tensor) else at
        return {"device_type": device.type, "arch": arch_number(device), "device_name": device_name(device)}

    def tuning_features(self) -> dict[str, Any]:
        """Fields by which tuning tables choose: all but `untuned`, with dtypes by name."""
        return {
            f.name: str(value).removeprefix("torch.")
            if isinstance(value := getattr(self, f.name), torch.dtype)
            else value
            for f in fields(self)
            if f.name not in self.untuned
        }
