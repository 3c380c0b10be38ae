"""Expert-parallel dispatch and combine over the reference all-to-all."""

from __future__ import annotations

from warploom.comm.backends.composed_moe import ComposedCombine, ComposedDispatch
from warploom.comm.backends.reference.all_to_all import ReferenceAllToAll

__all__ = ["ReferenceCombine", "ReferenceDispatch"]


class ReferenceDispatch(ComposedDispatch):
    """Rows travel by "reference"."""

    name = "reference"
    all_to_all = ReferenceAllToAll()


class ReferenceCombine(ComposedCombine):
    """Rows travel by "reference", the sum is torch's."""

    name = "reference"
    all_to_all = ReferenceAllToAll()
