"""How ranks find one another and move bytes without peer memory: MPI, a torch group, or nobody at all."""

from warploom.comm.transports.alone import AloneTransport
from warploom.comm.transports.base import Transport
from warploom.comm.transports.mpi import MpiTransport
from warploom.comm.transports.torch_group import TorchTransport

__all__ = ["AloneTransport", "MpiTransport", "TorchTransport", "Transport"]
