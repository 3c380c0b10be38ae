"""Fused all-reduces that differ from an earlier one in nothing but where their tensors begin."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import fields
from typing import Any

import torch

from warploom.comm.communicator import Communicator
from warploom.comm.epilogue import FusionTensors
from warploom.comm.fusion_workspace import AllReduceFusionWorkspace
from warploom.comm.problems.fusion import FusionProblem
from warploom.comm.repeated import RepeatedCall, call_key
from warploom.core.backends import Operator

__all__ = ["RepeatedFusion", "fusion_key", "scale_tensor"]


def scale_tensor(scale: torch.Tensor | float, device: torch.device) -> torch.Tensor:
    """A scale as float32 ``[1]``."""
    if isinstance(scale, torch.Tensor):
        return scale.reshape(1)
    return torch.full((1,), float(scale), dtype=torch.float32, device=device)


def fusion_key(
    operator: Operator, workspace: Any, given: FusionTensors, pattern: Any, group: Any, backend: Any
) -> Hashable | None:
    """`call_key` of what a caller gave, none of it checked."""
    if not isinstance(workspace, AllReduceFusionWorkspace) or not isinstance(pattern, int):
        return None
    key = call_key(
        operator, workspace.comm, given.input, given.output, given.residual_out, given.norm_out, given.quant_out,
        given.scale_out, given.residual_in, given.rms_gamma, given.scale_factor, given.rms_eps, given.weight_bias,
        group, backend,
    )  # fmt: skip
    return None if key is None else (key, pattern, workspace.limits)


class RepeatedFusion(RepeatedCall):
    """Makes the outputs that the first call had to make, and leaves out what its pattern has no use for.

    Parameters
    ----------
    operator, problem, backend, comm, tensors
        As of `RepeatedCall`.
    given : FusionTensors
        What the caller gave.
    """

    def __init__(
        self, operator: Operator, problem: FusionProblem, backend: str, comm: Communicator, tensors: FusionTensors,
        given: FusionTensors,
    ) -> None:  # fmt: skip
        super().__init__(operator, problem, backend, comm, tensors)
        pairs = [(field.name, getattr(tensors, field.name), getattr(given, field.name)) for field in fields(tensors)]
        self._unused = [name for name, served, own in pairs if served is None and own is not None]
        self._made = [(name, served.dtype) for name, served, own in pairs if served is not None and own is None]
        self._result = next(name for name in ("quant_out", "norm_out", "output") if getattr(tensors, name) is not None)

    def fuse(self, comm: Communicator, given: FusionTensors) -> torch.Tensor:
        """Serve what a caller gave, which is changed; returns the last step of the pattern."""
        given.input = given.input.contiguous()
        for name in self._unused:
            setattr(given, name, None)
        for name, dtype in self._made:
            setattr(given, name, torch.empty_like(given.input, dtype=dtype))
        if given.scale_factor is not None:
            given.scale_factor = scale_tensor(given.scale_factor, given.input.device)
        self.run(comm, given)
        result: torch.Tensor = getattr(given, self._result)
        return result
