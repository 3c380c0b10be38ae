"""Communicators of torch process groups, on gloo: its ranks are those of the mpirun."""

import datetime

import pytest
import torch
import torch.distributed as dist
from comm_oracle import in_rank_order, message, messages

from warploom.comm import Communicator, MoeAlltoAll, all_gather, all_reduce, all_to_all, reduce_scatter
from warploom.comm.torch_collectives import TorchCollectives
from warploom.core.errors import CommunicationError, UnsupportedError

pytestmark = pytest.mark.mpi


@pytest.fixture(scope="module")
def group(world):
    """A gloo group of all ranks, which meets at a port that rank 0 chooses."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) if world.rank == 0 else None
    port = world.transport.exchange_objects(store.port if store else 0)[0]
    store = store or dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group(
        "gloo", store=store, rank=world.rank, world_size=world.size, timeout=datetime.timedelta(seconds=30)
    )
    yield dist.group.WORLD
    world.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def comm(group):
    communicator = Communicator.from_torch(group, device="cpu", timeout=30.0)
    yield communicator
    communicator.close()


def test_every_collective(comm):
    assert comm.transport.name == "gloo"
    stack = messages(comm.size, (2 * comm.size, 3), torch.bfloat16)
    x = message(comm.rank, (2 * comm.size, 3), torch.bfloat16)
    total = in_rank_order(stack)
    rows = slice(2 * comm.rank, 2 * comm.rank + 2)
    assert torch.equal(all_reduce(x, comm), total)
    assert torch.equal(reduce_scatter(x, comm), total[rows])
    assert torch.equal(all_gather(x, comm), stack.flatten(0, 1))
    assert torch.equal(all_to_all(x, comm), stack[:, rows].flatten(0, 1))


def test_uneven_rows(comm):
    sent = [rank + comm.rank for rank in range(comm.size)]
    x = torch.full((sum(sent), 2), comm.rank)
    received = all_to_all(x, comm, sent, sent)
    assert received[:, 0].tolist() == [rank for rank in range(comm.size) for _ in range(rank + comm.rank)]


def test_dispatch_and_combine(comm):
    moe = MoeAlltoAll(comm, 4, 1, comm.size)
    experts = torch.tensor([[(comm.rank + 1) % comm.size]], dtype=torch.int32)
    (rows,) = moe.dispatch(experts, [torch.full((1, 2), float(comm.rank))], 4)
    assert rows[(comm.rank - 1) % comm.size, 0, 0] == (comm.rank - 1) % comm.size
    assert moe.combine(rows + 1, 4).tolist() == [[comm.rank + 1.0] * 2]


def test_mismatches_are_seen(comm):
    if comm.size == 1:
        pytest.skip("one rank agrees with itself")
    with pytest.raises(CommunicationError, match="ranks disagree"):
        all_reduce(torch.zeros(1 + comm.rank), comm)
    assert all_reduce(torch.ones(1), comm).tolist() == [comm.size]


def test_mpi_is_refused_with_its_reason(comm):
    if comm.size == 1:
        pytest.skip("a copy needs no MPI")
    with pytest.raises(UnsupportedError, match="the communicator's transport is gloo"):
        all_reduce(torch.ones(1), comm, backend="mpi")


def test_a_part_of_the_ranks(world, group):
    halves = [
        dist.new_group([rank for rank in range(world.size) if rank % 2 == side]) for side in range(min(2, world.size))
    ]
    with Communicator.from_torch(halves[world.rank % 2], device="cpu", timeout=30.0) as comm:
        assert all_gather(torch.tensor([world.rank]), comm).tolist() == list(range(world.rank % 2, world.size, 2))


def test_symmetric_buffers(comm):
    buffer = comm.symmetric_buffer(128)
    buffer.local.fill_(comm.rank)
    comm.barrier()
    assert len(buffer.pointers) == comm.size
    buffer.close()


def test_the_calls_that_nccl_gets(group, world):
    """`TorchCollectives` drives NCCL on GPUs; gloo has the same methods."""
    collectives = TorchCollectives(group, 30.0)
    x = torch.full((world.size,), float(world.rank))
    collectives.all_reduce(x, "max")
    assert x.eq(world.size - 1).all()
    gathered = torch.empty(2 * world.size)
    collectives.all_gather(gathered, torch.full((2,), float(world.rank)))
    assert gathered.tolist() == [rank for rank in range(world.size) for _ in range(2)]
    out = torch.empty(1)
    collectives.reduce_scatter(out, torch.ones(world.size), "sum")
    assert out.tolist() == [world.size]
    rows = torch.empty(world.size, 1)
    collectives.all_to_all(rows, torch.full((world.size, 1), float(world.rank)), [1] * world.size, [1] * world.size)
    assert rows.flatten().tolist() == list(range(world.size))
