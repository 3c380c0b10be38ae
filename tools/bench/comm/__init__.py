"""Collectives against NCCL and torch symmetric memory: ``mpirun -n 8 python tools/bench comm``, one GPU a rank.

Calls go out of place, 20 to a CUDA graph, and a time is that of the slowest rank divided by 20. Torch's operators get
their inputs in registered (symmetric) memory; ours and NCCL's are ordinary tensors. The limit is what a GPU has to send, at
the rate at which the copy engines of all GPUs write to all others at once.

==============  =================================================================
module          what is in it
==============  =================================================================
``ranks``       the communicator, the links' limit, targets by number of ranks
``all_reduce``  all-reduce
``moving``      all-gather, reduce-scatter, all-to-all
``fusion``      all-reduce + residual + RMSNorm
``layer``       what lies between two attentions, products included
``moe``         expert-parallel dispatch and combine
==============  =================================================================
"""

from .all_reduce import BENCHMARKS as ALL_REDUCE
from .fusion import BENCHMARKS as FUSION
from .layer import BENCHMARKS as LAYER
from .moe import BENCHMARKS as MOE
from .moving import BENCHMARKS as MOVING

BENCHMARKS = [*ALL_REDUCE, *MOVING, *FUSION, *LAYER, *MOE]
