"""Ranks as streams of one GPU, their mailboxes in the same memory: the peer-memory kernels need no second GPU to run."""

from types import SimpleNamespace

import torch

from warploom.comm.backends.direct.moe_all_to_all import DirectCombine, DirectDispatch
from warploom.comm.backends.oneshot.all_gather import GatherParams, OneShotAllGather
from warploom.comm.backends.oneshot.all_reduce import OneShotAllReduce
from warploom.comm.backends.oneshot.fused import FusedOneShot
from warploom.comm.backends.oneshot.moe_all_to_all import OneShotCombine, OneShotDispatch
from warploom.comm.backends.oneshot.reduce_scatter import OneShotReduceScatter
from warploom.comm.backends.peer_exchange import all_gather_params, all_to_all_params, exchange_spec
from warploom.comm.backends.peer_fusion import fusion_params
from warploom.comm.backends.peer_kernel import Message
from warploom.comm.backends.twoshot.all_reduce import TwoShotAllReduce
from warploom.comm.backends.twoshot.fused import FusedTwoShot
from warploom.comm.landing import Landing
from warploom.comm.peer_workspace import HEADER_BYTES, STAGING_BYTES, PeerWorkspace
from warploom.comm.problems.all_to_all import row_bytes

REDUCTIONS = {"oneshot": OneShotAllReduce, "twoshot": TwoShotAllReduce, "reduce_scatter": OneShotReduceScatter}
FUSIONS = {"oneshot": FusedOneShot, "twoshot": FusedTwoShot}
HALF = 8 << 20  # the largest: 200,003 float32 numbers of each of 8 ranks
EXCHANGE_THREADS = 512
BLOCKS = 8  # a rank; the blocks of all ranks must be resident at once


def resident(backend):
    """A backend that launches fewer blocks."""
    return type(backend.__name__, (backend,), {"shape": lambda self, problem: (BLOCKS, 512)})()


DISPATCHES = {"oneshot": resident(OneShotDispatch), "direct": resident(DirectDispatch)}
COMBINES = {"oneshot": resident(OneShotCombine), "direct": resident(DirectCombine)}


class Streams:
    """As many ranks as streams."""

    def __init__(self, size, timeout=20.0):
        self.size = size
        self.device = torch.device("cuda", torch.cuda.current_device())
        nbytes = HEADER_BYTES + 2 * HALF + STAGING_BYTES
        memory = [torch.empty(nbytes, dtype=torch.uint8, device=self.device) for _ in range(size)]
        pointers = tuple(buffer.data_ptr() for buffer in memory)
        self.workspaces = [
            PeerWorkspace(
                SimpleNamespace(nbytes=memory[rank].numel(), local=memory[rank], pointers=pointers, device=self.device),
                rank,
                timeout,
            )
            for rank in range(size)
        ]
        self.streams = [torch.cuda.Stream() for _ in range(size)]

    def reduce(self, kernel, outs, xs, threads=256, ranks=None):
        """Launch one of `REDUCTIONS` on every stream; the host waits for none. "twoshot long" overlaps its stages."""
        name, _, long = kernel.partition(" ")
        for rank in range(self.size) if ranks is None else ranks:
            message = Message(input=xs[rank], output=outs[rank], numel=outs[rank].numel())
            arguments = (xs[rank].dtype, self.size, True) if long else (xs[rank].dtype, self.size)
            self._launch(REDUCTIONS[name].spec(*arguments), rank, message, threads)

    def all_gather(self, outs, xs, threads=256, ranks=None):
        """The same with all-gather."""
        for rank in range(self.size) if ranks is None else ranks:
            params = GatherParams(input=xs[rank], output=outs[rank], bytes=xs[rank].nbytes)
            self._launch(OneShotAllGather.spec(self.size), rank, params, threads)

    def exchange_all_to_all(self, outs, xs, table, ranks=None):
        """The same with all-to-all; ``table[i][j]`` rows go from rank i to rank j."""
        for rank in range(self.size) if ranks is None else ranks:
            x, received = xs[rank], [row[rank] for row in table]
            params = all_to_all_params(outs[rank], x, received, table[rank], row_bytes(x))
            self._launch(exchange_spec(self.size), rank, params, EXCHANGE_THREADS)

    def exchange_all_gather(self, outs, xs, ranks=None):
        """The same with all-gather by that kernel."""
        for rank in range(self.size) if ranks is None else ranks:
            params = all_gather_params(outs[rank], xs[rank])
            self._launch(exchange_spec(self.size), rank, params, EXCHANGE_THREADS)

    def fuse(self, kernel, problem, tensors, ranks=None):
        """The same with one of `FUSIONS`; a problem for all, tensors of each."""
        spec, reducers = FUSIONS[kernel].spec_of(problem), BLOCKS // 2 if kernel == "twoshot" else 0
        for rank in range(self.size) if ranks is None else ranks:
            self._launch(spec, rank, fusion_params(problem, tensors[rank], reducers), spec.config["kThreads"])

    def _launch(self, spec, rank, params, threads):
        stream = self.streams[rank].cuda_stream
        spec.load(self.device).launch(BLOCKS, threads, self.workspaces[rank].arguments, params, stream=stream)

    def communicator(self, rank):
        """What backends ask of a communicator."""
        return SimpleNamespace(device=self.device, size=self.size, peer_workspace=self.workspaces[rank])

    def landings(self, capacity, row_bytes):
        """Memory where rows land, of each rank."""
        memory = []

        def allocate(nbytes):
            memory.append(torch.empty(nbytes, dtype=torch.uint8, device=self.device))
            pointers = [0] * self.size  # known when all have theirs
            buffer = SimpleNamespace(local=memory[-1], pointers=pointers, close=lambda: None)
            buffer.tensor = lambda dtype, shape, offset: (
                buffer.local[offset : offset + dtype.itemsize * torch.Size(shape).numel()].view(dtype).view(shape)
            )
            return buffer

        comm = SimpleNamespace(size=self.size, device=self.device, symmetric_buffer=allocate, barrier=lambda: None)
        made = [Landing(comm, capacity, row_bytes) for _ in range(self.size)]
        for landing in made:
            landing.params = landing.params_at([buffer.data_ptr() for buffer in memory])
        return made

    def each(self, runs):
        """Call ``runs[rank]`` on its stream."""
        for stream, run in zip(self.streams, runs, strict=True):
            with torch.cuda.stream(stream):
                run()

    def check(self):
        torch.cuda.synchronize()
        for workspace in self.workspaces:
            workspace.check()
