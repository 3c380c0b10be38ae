"""Fused all-reduce as an all-reduce and its epilogue in torch, for every backend of all-reduce."""

from __future__ import annotations

from typing import ClassVar

import torch

from warploom.comm.communicator import Communicator
from warploom.comm.epilogue import FusionTensors, apply_epilogue
from warploom.comm.problems.fusion import FusionProblem
from warploom.core.backends import Backend, Support

__all__ = ["ComposedFusion"]


class ComposedFusion(Backend):
    """Base: supports what its all-reduce supports.

    Attributes
    ----------
    all_reduce : Backend
        The backend of `ALL_REDUCE` that moves the data.
    """

    all_reduce: ClassVar[Backend]

    def supports(self, problem: FusionProblem) -> Support:
        return self.all_reduce.check(problem)

    def run(self, problem: FusionProblem, comm: Communicator, tensors: FusionTensors) -> None:
        wanted = tensors.output
        total = wanted if wanted is not None and wanted.is_contiguous() else torch.empty_like(tensors.input)
        self.all_reduce.run(problem, comm, total, tensors.input)
        apply_epilogue(problem, tensors, total)
