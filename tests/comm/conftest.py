"""Fixtures of the communication tests, which share `comm_oracle.py` and import it by its name."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def world():
    """All ranks of this mpirun (one, without mpirun) on the CPU."""
    from warploom.comm import Communicator

    communicator = Communicator.from_mpi(device="cpu", timeout=60.0)
    yield communicator
    communicator.close()
