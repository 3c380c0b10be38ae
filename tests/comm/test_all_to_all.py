"""All-to-all on CPU tensors."""

import pytest
import torch
from comm_oracle import message, spaced

from warploom.comm import all_to_all
from warploom.core.errors import ArgumentError, CommunicationError
from warploom.core.testing import cases, poison_like

pytestmark = pytest.mark.mpi
BACKENDS = ["auto", "mpi", "reference"]
DTYPES = [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int64]


def split_table(size, seed):
    """``table[i][j]``: rows from rank i to rank j, many of them zero."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(0, 6, (size, size), generator=generator) - 2).clamp_min(0).tolist()


def expected_rows(table, rank, tail, dtype):
    received = []
    for sender, row in enumerate(table):
        first = sum(row[:rank])
        received.append(message(sender, (sum(row), *tail), dtype)[first : first + row[rank]])
    return torch.cat(received)


@pytest.mark.parametrize(*cases(dtype=DTYPES, tail=[(), (3,), (2, 0)], backend=BACKENDS))
def test_uneven_parts(world, case):
    for seed in range(4):
        table = split_table(world.size, seed)
        sent, received = table[world.rank], [row[world.rank] for row in table]
        x = message(world.rank, (sum(sent), *case.tail), case.dtype)
        result = all_to_all(x, world, received, sent, backend=case.backend)
        expected = expected_rows(table, world.rank, case.tail, case.dtype)
        assert result.shape == expected.shape
        assert torch.equal(result.view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize("backend", BACKENDS)
def test_even_parts_strides_and_outputs(world, backend):
    table = [[2] * world.size] * world.size
    x = spaced(message(world.rank, (2 * world.size, 4), torch.float32))
    expected = expected_rows(table, world.rank, (4,), torch.float32)
    assert torch.equal(all_to_all(x, world, backend=backend), expected)
    out = poison_like(expected)
    assert all_to_all(x, world, out=out, backend=backend) is out
    assert torch.equal(out, expected)
    assert torch.equal(all_to_all(x, world, out=spaced(out), backend=backend), expected)


def test_wrong_arguments(world):
    rows = 2 * world.size
    with pytest.raises(ArgumentError, match="`input_split_sizes`"):
        all_to_all(torch.zeros(rows), world, input_split_sizes=[rows] * (world.size + 1))
    with pytest.raises(ArgumentError, match=f"with the sum {rows}"):
        all_to_all(torch.zeros(rows), world, input_split_sizes=[3] + [0] * (world.size - 1))
    with pytest.raises(ArgumentError, match="`out`"):
        all_to_all(torch.zeros(rows), world, out=torch.zeros(rows + 1))


def test_row_counts_that_do_not_fit_raise_on_every_rank(world):
    if world.size == 1:
        pytest.skip("one rank agrees with itself")
    sent = [1] * world.size
    received = [2 if world.rank == 1 and peer == 0 else 1 for peer in range(world.size)]
    with pytest.raises(CommunicationError, match="rank 0 sends 1 rows to rank 1, which expects 2"):
        all_to_all(torch.zeros(world.size), world, received, sent)
    with pytest.raises(CommunicationError, match="rows differ"):
        all_to_all(torch.zeros(world.size, 1 + world.rank % 2), world)
