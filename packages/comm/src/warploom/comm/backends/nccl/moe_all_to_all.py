"""Expert-parallel dispatch and combine over the nccl all-to-all."""

from __future__ import annotations

from warploom.comm.backends.composed_moe import ComposedCombine, ComposedDispatch
from warploom.comm.backends.nccl.all_to_all import NcclAllToAll

__all__ = ["NcclCombine", "NcclDispatch"]


class NcclDispatch(ComposedDispatch):
    """Rows travel by "nccl"."""

    name = "nccl"
    all_to_all = NcclAllToAll()


class NcclCombine(ComposedCombine):
    """Rows travel by "nccl", the sum is torch's."""

    name = "nccl"
    all_to_all = NcclAllToAll()
