"""Fixtures of the GPU tests: one rank a GPU under ``mpirun -n N``; ranks share GPUs where there are fewer."""

import pytest
import torch


@pytest.fixture(scope="session")
def gpus():
    """All ranks of this mpirun, each on its GPU, with mailboxes for 8 MiB messages in one shot on 8 ranks."""
    from mpi4py import MPI

    from warploom.comm import Communicator

    torch.cuda.set_device(MPI.COMM_WORLD.rank % torch.cuda.device_count())
    communicator = Communicator.from_mpi(
        device=torch.cuda.current_device(), timeout=20.0, workspace_bytes=(128 << 20) + 4096
    )
    if communicator.rank == 0:
        print(communicator.topology)
    yield communicator
    torch.cuda.synchronize()
    communicator.close()
