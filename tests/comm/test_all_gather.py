"""All-gather on CPU tensors."""

import pytest
import torch
from comm_oracle import message, messages, ragged_shapes, spaced

from warploom.comm import all_gather
from warploom.core.errors import ArgumentError, CommunicationError
from warploom.core.testing import cases, poison_like

pytestmark = pytest.mark.mpi
BACKENDS = ["auto", "mpi", "reference"]
DTYPES = [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.bool]


def bits(x):
    return x.contiguous().view(torch.uint8)


@pytest.mark.parametrize(*cases(dtype=DTYPES, backend=BACKENDS))
def test_values(world, case):
    for seed, shape in enumerate(ragged_shapes(8, seed=2)):
        if not shape:
            continue
        for dim in {0, len(shape) - 1, -1}:
            x = message(world.rank, shape, case.dtype, seed)
            expected = torch.cat(list(messages(world.size, shape, case.dtype, seed)), dim)
            assert torch.equal(bits(all_gather(x, world, dim, backend=case.backend)), bits(expected))


@pytest.mark.parametrize("backend", BACKENDS)
def test_given_outputs_and_strides(world, backend):
    x = spaced(message(world.rank, (4, 6), torch.float16))
    stack = messages(world.size, (4, 6), torch.float16)
    for dim in (0, 1):
        expected = torch.cat(list(stack), dim)
        out = poison_like(expected)
        assert all_gather(x, world, dim, out, backend=backend) is out
        assert torch.equal(out, expected)
        wide = spaced(torch.zeros_like(expected))
        assert torch.equal(all_gather(x, world, dim, wide, backend=backend), expected)


def test_wrong_arguments(world):
    with pytest.raises(ArgumentError, match="`x`"):
        all_gather(torch.zeros(()), world)
    with pytest.raises(ArgumentError, match="`dim` must be a dimension of the 2-D `x`, got 2"):
        all_gather(torch.zeros(2, 2), world, 2)
    with pytest.raises(ArgumentError, match="`out`"):
        all_gather(torch.zeros(2, 2), world, out=torch.zeros(2 * world.size + 1, 2))


def test_different_shapes_raise_on_every_rank(world):
    if world.size == 1:
        pytest.skip("one rank agrees with itself")
    with pytest.raises(CommunicationError, match="ranks disagree"):
        all_gather(torch.zeros(world.rank + 1, 2), world)
