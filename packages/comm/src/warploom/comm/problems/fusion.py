"""The fused all-reduce problem: what follows the reduction."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch

from warploom.comm.communicator import Communicator
from warploom.comm.problems.all_reduce import AllReduceProblem

__all__ = ["AllReduceFusionPattern", "FusionProblem"]


class AllReduceFusionPattern(IntEnum):
    """What `allreduce_fusion` computes after the all-reduce. The numbers up to 11 are FlashInfer's.

    "Out" patterns write the normalised tensor beside its quantisation. 12 and 13 quantise groups of columns of a token
    with one float32 scale each.
    """

    kAllReduce = 0
    kARResidualRMSNorm = 1
    kARResidualRMSNormFP8Quant = 2
    kARResidualRMSNormOutFP8Quant = 4
    kARResidualRMSNormDynamicFP8Quant = 10
    kARResidualRMSNormOutDynamicFP8Quant = 11
    kARResidualRMSNormGroupFP8Quant = 12
    kARResidualRMSNormOutGroupFP8Quant = 13

    @property
    def normalises(self) -> bool:
        """Adds the residual and applies RMSNorm."""
        return self is not AllReduceFusionPattern.kAllReduce

    @property
    def quantisation(self) -> str:
        """``""``, ``"tensor"`` (a given scale), ``"token"`` or ``"group"`` (computed scales)."""
        names = {"DynamicFP8Quant": "token", "GroupFP8Quant": "group", "FP8Quant": "tensor"}
        return next((kind for suffix, kind in names.items() if self.name.endswith(suffix)), "")

    @property
    def writes_norm(self) -> bool:
        """Has ``norm_out`` among its outputs."""
        return self.normalises and (not self.quantisation or "Out" in self.name)


@dataclass(frozen=True, kw_only=True)
class FusionProblem(AllReduceProblem):
    """All-reduce of ``[tokens, hidden]`` followed by `pattern`.

    Attributes
    ----------
    tokens, hidden : int
        Rows and columns.
    pattern : AllReduceFusionPattern
        What follows.
    group_size : int
        Columns that share a scale, for the group patterns; else 0.
    """

    tokens: int
    hidden: int
    pattern: AllReduceFusionPattern = AllReduceFusionPattern.kARResidualRMSNorm
    group_size: int = 0

    @classmethod
    def of(cls, comm: Communicator, x: torch.Tensor, pattern: AllReduceFusionPattern, group_size: int) -> FusionProblem:
        """The problem of reducing ``x [tokens, hidden]`` and what follows."""
        tokens, hidden = x.shape
        return cls(tokens=tokens, hidden=hidden, pattern=pattern, group_size=group_size,
                   nbytes=x.nbytes, dtype=x.dtype, op="sum", **cls.among(comm, x))  # fmt: skip
