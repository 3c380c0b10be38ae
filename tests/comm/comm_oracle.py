"""What the ranks hold, computable by each of them, and what a collective must make of it, in float64.

Every rank knows the others' inputs from their seeds, so expectations need no communication.
"""

import torch

from warploom.core.testing import random_normal

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def message(rank, shape, dtype, seed=0):
    """The input of one rank."""
    if dtype.is_floating_point:
        return random_normal(shape, dtype, seed=1000 * seed + rank)
    generator = torch.Generator().manual_seed(1000 * seed + rank)
    return torch.randint(0, 20, tuple(shape), generator=generator).to(dtype)


def messages(size, shape, dtype, seed=0):
    """The inputs of all ranks, ``[size, *shape]``."""
    return torch.stack([message(rank, shape, dtype, seed) for rank in range(size)])


def reduced(stack, op):
    """The exact reduction of ``stack [size, ...]``."""
    wide = stack.double()
    return {"sum": wide.sum(0), "avg": wide.mean(0), "max": wide.amax(0), "min": wide.amin(0)}[op]


def in_oracle(case):
    """Whether `reduced` models a case: averages of integers are truncated, which it does not."""
    return case.op != "avg" or case.dtype.is_floating_point


def in_rank_order(stack):
    """The sum as every backend but NCCL must give it, bit for bit."""
    total = stack[0].float()
    for part in stack[1:]:
        total = total + part.float()
    return total.to(stack.dtype)


def ragged_shapes(count, seed):
    """Random shapes of 0 to 4 dimensions, empty ones among them; the same on every rank."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(), (0,), (3, 0, 2), (1,)]
    while len(shapes) < count:
        dims = int(torch.randint(1, 5, (), generator=generator))
        shapes.append(tuple(torch.randint(1, 9, (dims,), generator=generator).tolist()))
    return shapes


def spaced(x):
    """The same values with a stride of 2 in the last dimension."""
    wide = torch.empty(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)
    view = wide[..., ::2]
    view.copy_(x)
    return view
