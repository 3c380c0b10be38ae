import pytest
from mpi4py import MPI
pytestmark = pytest.mark.mpi
def test_ok():
    assert MPI.COMM_WORLD.allreduce(1) == MPI.COMM_WORLD.size
@pytest.mark.skipif(True, reason="x")
def test_skip(): pass
def test_bad():
    import os
    if os.environ.get("BAD"):
        assert MPI.COMM_WORLD.rank != 1, "boom"
        MPI.COMM_WORLD.barrier()
