"""Making, using, failing and closing communicators on the CPU."""

import gc
import time

import pytest
import torch

from warploom.comm import Communicator, all_gather, all_reduce
from warploom.core.errors import ArgumentError, CommunicationError
from warploom.core.testing import assert_close

pytestmark = pytest.mark.mpi


def make(**arguments):
    return Communicator.from_mpi(device="cpu", **{"timeout": 30.0, **arguments})


def ones(comm):
    """A check that the communicator works."""
    assert_close(all_reduce(torch.ones(3), comm), torch.full((3,), float(comm.size)))


def test_it_describes_its_ranks(world):
    from mpi4py import MPI

    assert (world.rank, world.size) == (MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size)
    assert world.device == torch.device("cpu")
    assert world.topology.one_host
    assert world.topology.size == world.size
    assert not world.topology.why_no_peer_memory
    assert "rank 0: cpu" in str(world.topology)
    assert f"rank={world.rank}, size={world.size}" in repr(world)


def test_closing_twice_is_fine_and_using_it_afterwards_is_not():
    comm = make()
    ones(comm)
    comm.close()
    comm.close()
    for use in (lambda: all_reduce(torch.ones(1), comm), comm.barrier, lambda: comm.symmetric_buffer(16)):
        with pytest.raises(CommunicationError, match="closed"):
            use()
    assert "closed" in repr(comm)


def test_the_context_manager_closes():
    with make() as comm:
        ones(comm)
    with pytest.raises(CommunicationError, match="closed"):
        comm.barrier()


def test_leaving_by_an_exception_does_not_wait_for_the_others(world):
    class Surprise(Exception):
        pass

    start = time.monotonic()
    comm = make()
    comm.symmetric_buffer(64)
    with pytest.raises(Surprise), comm:
        raise Surprise
    assert time.monotonic() - start < 10
    with pytest.raises(CommunicationError, match="closed"):
        comm.barrier()
    ones(world)


def test_a_dropped_communicator_is_not_kept_alive():
    from warploom.comm import handles

    comm = make()
    number = comm.handle
    assert handles.find(number, "test") is comm
    comm.close()
    del comm
    gc.collect()
    with pytest.raises(CommunicationError, match="no longer exists"):
        handles.find(number, "test")


def test_dropping_it_unclosed_keeps_memory_that_peers_may_use(world):
    from warploom.comm import symmetric

    comm = make()
    comm.symmetric_buffer(64)
    before = len(symmetric._ABANDONED)
    del comm
    gc.collect()
    assert len(symmetric._ABANDONED) == before + 1
    ones(world)


def test_several_communicators_at_once(world):
    with make() as other:
        for i in range(5):
            a = all_reduce(torch.full((3,), float(i)), world)
            b = all_gather(torch.tensor([other.rank + i]), other)
            assert_close(a, torch.full((3,), float(i * world.size)))
            assert b.tolist() == [rank + i for rank in range(other.size)]


def test_a_part_of_the_ranks():
    from mpi4py import MPI

    everyone = MPI.COMM_WORLD
    half = everyone.Split(everyone.rank % 2, everyone.rank)
    with make(comm=half) as comm:
        gathered = all_gather(torch.tensor([everyone.rank]), comm)
        assert gathered.tolist() == [rank for rank in range(everyone.size) if rank % 2 == everyone.rank % 2]
    half.Free()


def test_the_callers_messages_stay_apart(world):
    """Traffic of the caller with our tags does not disturb ours."""
    from mpi4py import MPI

    peer = (world.rank + 1) % world.size
    request = MPI.COMM_WORLD.isend("mine", dest=peer, tag=17)
    ones(world)
    assert MPI.COMM_WORLD.recv(source=(world.rank - 1) % world.size, tag=17) == "mine"
    request.wait()


@pytest.mark.parametrize("value", ["world", 3])
def test_wrong_ranks(value):
    with pytest.raises(ArgumentError, match="an mpi4py intracommunicator"):
        Communicator.from_mpi(value, device="cpu")
    with pytest.raises(ArgumentError, match=r"torch\.distributed\.group\.WORLD"):
        Communicator.from_torch(value, device="cpu")
    with pytest.raises(ArgumentError, match="`device`"):
        Communicator.single("meta")


def test_a_rank_that_stays_away_is_named():
    comm = make(timeout=0.5)
    if comm.size == 1:
        pytest.skip("nobody to wait for")
    late = comm.size - 1
    if comm.rank == late:
        time.sleep(1.5)
        comm._release(wait=False)
    else:
        with pytest.raises(
            CommunicationError, match=rf"rank {comm.rank}: all_reduce, call 1: waited 0\.\d s for rank .*{late}"
        ):
            all_reduce(torch.ones(2), comm)
        with pytest.raises(CommunicationError, match="failed before"):
            comm.barrier()
        comm.close()  # does not wait for anyone


def test_calls_out_of_order_are_named(world):
    if world.size == 1:
        pytest.skip("one rank agrees with itself")
    with pytest.raises(CommunicationError, match="ranks call different operations: rank 0: all_reduce"):
        (all_gather if world.rank else all_reduce)(torch.ones(2), world)
    ones(world)


def test_symmetric_buffers_are_shared_memory(world):
    with make() as comm:
        first, second = comm.symmetric_buffer(100), comm.symmetric_buffer(1 << 20)
        assert len(set(first.pointers)) == comm.size
        assert first.local.numel() == 100
        assert first.pointers[comm.rank] == first.local.data_ptr()
        first.tensor(torch.int32, (5,), 16).fill_(comm.rank + 7)
        second.local.fill_(comm.rank)
        comm.barrier()
        for rank in range(comm.size):
            assert read(first.pointers[rank] + 16, 20).view(torch.int32).tolist() == [rank + 7] * 5
            assert set(read(second.pointers[rank], 1 << 20).tolist()) == {rank}
        comm.barrier()
        kept = first.local
        first.close()
        first.close()
    assert kept[16] == comm.rank + 7, "a tensor of the caller lost its memory"


def read(address, nbytes):
    import ctypes

    return torch.frombuffer(bytearray(ctypes.string_at(address, nbytes)), dtype=torch.uint8)


def test_symmetric_buffers_refuse_nonsense(world):
    with make() as comm:
        with pytest.raises(ArgumentError, match="`nbytes`"):
            comm.symmetric_buffer(0)
        buffer = comm.symmetric_buffer(64)
        for dtype, shape, offset in ((torch.int32, (17,), 0), (torch.int32, (1,), 2), (torch.uint8, (1,), 64)):
            with pytest.raises(ArgumentError, match="`offset`"):
                buffer.tensor(dtype, shape, offset)
        if comm.size > 1:
            with pytest.raises(CommunicationError, match="different sizes"):
                comm.symmetric_buffer(64 + comm.rank)
        ones(comm)


def test_symmetric_buffers_leave_no_file_behind(world):
    import os

    before = {name for name in os.listdir("/dev/shm") if name.startswith("warploom-")}
    with make() as comm:
        comm.barrier()
        comm.symmetric_buffer(64)
        comm.barrier()
        assert {name for name in os.listdir("/dev/shm") if name.startswith("warploom-")} <= before


def test_one_rank_that_cannot_allocate_stops_all(world, monkeypatch):
    from warploom.comm import host_memory

    with make() as comm:
        if comm.rank == comm.size - 1:

            def full(descriptor, start, length):
                raise OSError("no space left")

            monkeypatch.setattr(host_memory.os, "posix_fallocate", full)
        with pytest.raises(CommunicationError, match="no space left"):
            comm.symmetric_buffer(64)
        monkeypatch.undo()
        comm.symmetric_buffer(64)
        ones(comm)
