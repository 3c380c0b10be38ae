"""Expert-parallel dispatch and combine over the mpi all-to-all."""

from __future__ import annotations

from warploom.comm.backends.composed_moe import ComposedCombine, ComposedDispatch
from warploom.comm.backends.mpi.all_to_all import MpiAllToAll

__all__ = ["MpiCombine", "MpiDispatch"]


class MpiDispatch(ComposedDispatch):
    """Rows travel by "mpi"."""

    name = "mpi"
    all_to_all = MpiAllToAll()


class MpiCombine(ComposedCombine):
    """Rows travel by "mpi", the sum is torch's."""

    name = "mpi"
    all_to_all = MpiAllToAll()
