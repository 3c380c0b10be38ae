"""A rank of two whose GPU is memory of the host: what its calls hand to the driver is written down, and nothing is run."""

import ctypes
import struct
from types import SimpleNamespace

import torch
import torch._dynamo  # its tables are made of torch's own functions, before some are replaced here

from warploom.comm import Communicator, communicator, peer_workspace, repeated_fusion
from warploom.comm.peer_workspace import HEADER_BYTES, STAGING_BYTES, Mailboxes, PeerWorkspace
from warploom.comm.symmetric import SymmetricBuffer
from warploom.comm.topology import Topology
from warploom.core import calls, device, tensors
from warploom.core.jit import KernelSpec
from warploom.core.jit import kernel as kernel_module

DEVICE = torch.device("cuda", 0)


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    is_cuda = True
    device = DEVICE


def on_gpu(*shape, dtype=torch.bfloat16):
    """Zeros."""
    return as_gpu(torch.zeros(*shape, dtype=dtype))


def as_gpu(tensor):
    """The same memory; views of tensors on the emulated GPU need it too."""
    return tensor.as_subclass(OnGpu)


class TorchOnGpu:
    """The module torch, which makes tensors for the emulated GPU too."""

    def __getattr__(self, name):
        found = getattr(torch, name)
        if name not in ("empty", "full", "zeros"):
            return found

        def make(*arguments, device=None, pin_memory=False, **options):
            if device != DEVICE:
                return found(*arguments, device=device, **options)
            return as_gpu(found(*arguments, **options))

        return make


class EmulatedStream:
    def __init__(self, number, events):
        self.cuda_stream, self._events = number, events

    def record_event(self):
        return f"end of {self.cuda_stream}"

    def wait_event(self, event):
        self._events.append(f"{self.cuda_stream} after {event}")


class EmulatedBuffer(SymmetricBuffer):
    """Memory that a peer would map, too."""

    def __init__(self, nbytes, device, transport, topology):
        self.nbytes, self.device, self._closed = nbytes, device, False
        self.local = torch.zeros(nbytes, dtype=torch.uint8)
        self.pointers = (self.local.data_ptr(), 2)

    def close(self, wait=True):
        if wait and not self._closed:
            del self.local
        self._closed = True


class EmulatedRanks:
    """Takes the place of the driver as long as the monkeypatch lasts.

    `launches` are (kernel, grid and block, stream, fields of the parameters), those of symmetric memory under "landing";
    `events` are what a stream waits for.
    """

    def __init__(self, monkeypatch):
        self.launches, self.events = [], []
        self.stream, self.current, self.capturing = 7, 0, False
        kernels = {}

        def load(spec, where):
            return kernels.setdefault(spec.name, EmulatedKernel(spec, self))

        monkeypatch.setattr(calls, "_TENSORS", frozenset({*calls._TENSORS, OnGpu}))
        monkeypatch.setattr(device, "_properties", lambda index: (90, "emulated", 132))
        for module in (tensors, repeated_fusion, peer_workspace):
            monkeypatch.setattr(module, "torch", TorchOnGpu())
        monkeypatch.setattr(torch.cuda, "current_device", lambda: self.current)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.capturing)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda at=None: EmulatedStream(self.stream, self.events))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda at=None: None)
        monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: self.current, raising=False)
        monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda at: self.stream, raising=False)
        monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
        monkeypatch.setattr(communicator, "SymmetricBuffer", EmulatedBuffer)
        monkeypatch.setattr(communicator, "nccl_beside", lambda *_: SimpleNamespace(close=lambda: None))
        monkeypatch.setattr(kernel_module, "ensure_context", lambda at: None)
        monkeypatch.setattr(KernelSpec, "load", load)

    def communicator(self):
        """Rank 0 of two."""
        comm = Communicator.single("cpu")
        comm.size = comm.transport.size = 2
        comm.device, comm.why_no_peer_kernels = DEVICE, ""
        comm.topology = Topology(("here", "here"), ("0", "1"), ((True, True), (True, True)))
        local = torch.empty(HEADER_BYTES + (1 << 20) + STAGING_BYTES, dtype=torch.uint8)
        buffer = SimpleNamespace(nbytes=local.numel(), local=local, pointers=(1, 2), device=DEVICE)
        comm.peer_workspace = PeerWorkspace(buffer, 0, 30.0)
        return comm


def ways_to_spoil(operation):
    """Functions that close a communicator or have it fail, as in a call of this number, and what it says then."""

    def close(comm):
        comm._release(wait=True)

    def fail(comm):
        comm.transport.failure = "rank 1 is gone"

    def report(comm):
        comm.peer_workspace._fields[:5] = torch.tensor([1, 3, 1, 0, 0]).numpy()
        comm.peer_workspace._words[3] = 4 << 48 | operation << 40  # of the same call

    return (close, "closed"), (fail, "rank 1 is gone"), (report, "waited for data of rank 1")


class EmulatedKernel(kernel_module.Kernel):
    """Writes down what it would be launched with."""

    def __init__(self, spec, ranks):
        self._spec, self._ranks = spec, ranks
        self.device, self.record = 0, {"name": spec.name}
        self._driver = SimpleNamespace(cuLaunchKernelEx=self._launch)
        self._smem_limit, self._function = 1 << 20, spec.stem
        self._configs = calls.Kept(16)

    def _new_config(self, blocks, threads, smem, cluster, pdl):
        assert pdl, "not launched as a dependent kernel"
        return SimpleNamespace(shape=(*blocks, *threads), hStream=None)

    def _launch(self, config, function, where, _extra):
        shape, stream = config.shape, config.hStream
        kinds = self._spec.params
        addresses = struct.unpack(f"{len(kinds)}P", ctypes.string_at(where, 8 * len(kinds)))
        *first, fields = map(unpacked, kinds, addresses)
        if first:  # all but the kernel that places tokens
            assert kinds[0] is Mailboxes
            assert first[0]["buffers"][:2] == [1, 2], "not the communicator's mailboxes"
            fields["landing"] = first[-1] if len(first) > 1 else None
        self._ranks.launches.append((self._spec.name, tuple(shape), stream, fields))
        return (0,)


def unpacked(kind, address):
    """The fields of the parameters that lie at an address."""
    values = iter(kind._packer.unpack(ctypes.string_at(address, kind._packer.size)))
    return {
        name: [next(values) for _ in range(count)] if count > 1 else next(values)
        for name, (_, count) in kind._fields.items()
    }
