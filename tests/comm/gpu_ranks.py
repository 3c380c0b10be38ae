"""What the tests with a GPU for each rank share."""

import time

import torch

KERNELS = ["oneshot", "twoshot"]  # of all-reduce


def inputs(comm, numel, dtype, seed=0, offset=0):
    """The messages of all ranks, which every GPU draws alike; they start `offset` elements past a boundary."""
    generator = torch.Generator(comm.device).manual_seed(seed)
    wide = torch.randn(comm.size, numel + offset, generator=generator, device=comm.device)
    return [row.to(dtype).clone()[offset:] for row in wide]


def calls_for(comm, calls):
    """Fewer calls where ranks take turns on a GPU: each costs a time slice."""
    return calls // 20 if comm.topology.shares_gpus else calls


def be_late(own):
    """Hold up this rank's host or its stream now and then, as its own generator says."""
    if own.random() < 0.1:
        time.sleep(own.random() * 0.002)
    if own.random() < 0.1:
        torch.cuda._sleep(own.randrange(2_000_000))
