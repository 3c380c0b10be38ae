"""The workspace of `allreduce_fusion`."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch

from warploom.comm.collective import check_comm
from warploom.comm.communicator import Communicator
from warploom.core.tensors import Checker, as_dtype

__all__ = ["FUSION_DTYPES", "AllReduceFusionWorkspace", "create_allreduce_fusion_workspace"]

FUSION_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class AllReduceFusionWorkspace:
    """The ranks and the largest problem of a model's fused all-reduces. Made by `create_allreduce_fusion_workspace`.

    Attributes
    ----------
    comm : Communicator
        The ranks; its memory is what the kernels use, so it must stay open.
    max_token_num, hidden_dim : int
        Largest number of tokens, and the columns.
    dtype : torch.dtype
        Of the tensors to reduce.
    backend : str
        What the calls use.
    """

    comm: Communicator
    max_token_num: int
    hidden_dim: int
    dtype: torch.dtype
    backend: str

    @functools.cached_property
    def limits(self) -> tuple[Any, ...]:
        """All but the communicator."""
        return self.max_token_num, self.hidden_dim, self.dtype, self.backend

    def is_buffer_size_sufficient(self, tp_size: int, num_tokens: int, hidden_dim: int, dtype: torch.dtype) -> bool:
        """Whether a call of this size fits the workspace.

        Parameters
        ----------
        tp_size : int
            Ranks.
        num_tokens, hidden_dim, dtype
            Of the call's input.
        """
        same = tp_size == self.comm.size and hidden_dim == self.hidden_dim and dtype == self.dtype
        return same and num_tokens <= self.max_token_num

    def destroy(self) -> None:
        """Nothing to free: the memory is the communicator's."""


def create_allreduce_fusion_workspace(
    comm: Communicator, *, max_token_num: int, hidden_dim: int, dtype: torch.dtype | str, backend: str = "auto"
) -> AllReduceFusionWorkspace:
    """Describe the largest fused all-reduce of a model once.

    Parameters
    ----------
    comm : Communicator
        The ranks.
    max_token_num, hidden_dim : int
        Largest number of tokens of a call, and the columns.
    dtype : torch.dtype or str
        float32, float16 or bfloat16.
    backend : str
        What the calls use: "auto", or one of `all_reduce`.

    Returns
    -------
    AllReduceFusionWorkspace

    Raises
    ------
    ArgumentError
        A size is not positive, or the dtype is no float type.

    Examples
    --------
    >>> from warploom.comm import Communicator, create_allreduce_fusion_workspace
    >>> comm = Communicator.single("cpu")
    >>> create_allreduce_fusion_workspace(comm, max_token_num=8, hidden_dim=64, dtype="bfloat16").backend
    'auto'
    """
    check = Checker("create_allreduce_fusion_workspace")
    check_comm(check, comm)
    for name, value in (("max_token_num", max_token_num), ("hidden_dim", hidden_dim)):
        check.require(isinstance(value, int) and value > 0, name, "a positive integer", value)
    dtype = as_dtype(dtype, check.op, "dtype")
    check.require(dtype in FUSION_DTYPES, "dtype", "float32, float16 or bfloat16", dtype)
    return AllReduceFusionWorkspace(comm, max_token_num, hidden_dim, dtype, backend)
