"""Collectives for serving: all-reduce and its fusions, all-gather, reduce-scatter, expert-parallel exchange."""

from warploom.comm.all_gather import all_gather
from warploom.comm.all_reduce import all_reduce
from warploom.comm.all_to_all import all_to_all
from warploom.comm.communicator import Communicator
from warploom.comm.fusion import allreduce_fusion
from warploom.comm.fusion_workspace import AllReduceFusionWorkspace, create_allreduce_fusion_workspace
from warploom.comm.moe_all_to_all import MoeAlltoAll
from warploom.comm.problems.fusion import AllReduceFusionPattern
from warploom.comm.reduce_scatter import reduce_scatter
from warploom.comm.symmetric import SymmetricBuffer
from warploom.comm.topology import Topology

__all__ = [
    "AllReduceFusionPattern",
    "AllReduceFusionWorkspace",
    "Communicator",
    "MoeAlltoAll",
    "SymmetricBuffer",
    "Topology",
    "all_gather",
    "all_reduce",
    "all_to_all",
    "allreduce_fusion",
    "create_allreduce_fusion_workspace",
    "reduce_scatter",
]
