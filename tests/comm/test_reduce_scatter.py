"""Reduce-scatter on CPU tensors."""

import pytest
import torch
from comm_oracle import FLOATS, in_oracle, in_rank_order, message, messages, reduced, spaced

from warploom.comm import reduce_scatter
from warploom.core.errors import ArgumentError, CommunicationError
from warploom.core.testing import assert_close, cases, poison_like

pytestmark = pytest.mark.mpi
BACKENDS = ["auto", "mpi", "reference"]


def part(world, x):
    rows = x.shape[0] // world.size
    return x[world.rank * rows : (world.rank + 1) * rows]


@pytest.mark.parametrize(
    *cases(
        in_oracle,
        dtype=[*FLOATS, torch.int32],
        op=["sum", "avg", "max", "min"],
        rows=[0, 1, 5],
        tail=[(), (3, 2), (0,)],
    )
)
def test_values(world, case):
    shape = (case.rows * world.size, *case.tail)
    x = message(world.rank, shape, case.dtype)
    expected = part(world, reduced(messages(world.size, shape, case.dtype), case.op))
    for backend in BACKENDS:
        assert_close(reduce_scatter(x, world, case.op, backend=backend), expected, dtype=case.dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_order_strides_and_outputs(world, backend):
    shape = (3 * world.size, 10)
    x = spaced(message(world.rank, shape, torch.bfloat16))
    expected = part(world, in_rank_order(messages(world.size, shape, torch.bfloat16)))
    assert torch.equal(reduce_scatter(x, world, backend=backend), expected)
    out = poison_like(expected)
    assert reduce_scatter(x, world, out=out, backend=backend) is out
    assert torch.equal(out, expected)
    inside = x.contiguous()
    reduce_scatter(inside, world, out=part(world, inside), backend=backend)
    assert torch.equal(part(world, inside), expected)


def test_wrong_arguments(world):
    with pytest.raises(ArgumentError, match="`x`"):
        reduce_scatter(torch.zeros(()), world)
    with pytest.raises(ArgumentError, match="`out`"):
        reduce_scatter(torch.zeros(world.size, 2), world, out=torch.zeros(2, 2))
    with pytest.raises(ArgumentError, match="`op`"):
        reduce_scatter(torch.zeros(world.size), world, "mean")
    if world.size > 1:
        with pytest.raises(ArgumentError, match=f"divisible by the {world.size} ranks"):
            reduce_scatter(torch.zeros(world.size + 1), world)
        with pytest.raises(CommunicationError, match="ranks disagree"):
            reduce_scatter(torch.zeros(world.size * (1 + world.rank)), world)
