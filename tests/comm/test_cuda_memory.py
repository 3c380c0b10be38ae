"""How GPU memory is shared, with a stand-in for the CUDA runtime: which calls are made, and what a failure says."""

import contextlib
import gc
from types import SimpleNamespace

import pytest
import torch

from warploom.comm import cuda_memory, peer_workspace
from warploom.comm.peer_workspace import PeerWorkspace
from warploom.core.errors import CommunicationError

DEVICE = torch.device("cuda", 0)


class Status(int):
    name = "cudaErrorDemo"


class Runtime:
    """Records calls; memory lies at made-up addresses."""

    cudaIpcMemLazyEnablePeerAccess = 1

    def __init__(self):
        self.calls = []
        self.failing = ""

    def cudaIpcMemHandle_t(self):
        return SimpleNamespace(reserved=b"\0" * 64)

    def __getattr__(self, name):
        results = {
            "cudaMalloc": 0x1000, "cudaIpcOpenMemHandle": 0x2000, "cudaDeviceGetPCIBusId": b"0000:1A:00.0\0junk",
            "cudaDeviceGetByPCIBusId": 3, "cudaDeviceCanAccessPeer": 0,
            "cudaIpcGetMemHandle": SimpleNamespace(reserved=bytes(range(64))),
        }  # fmt: skip

        def call(*arguments):
            self.calls.append((name, *arguments))
            status = Status(name == self.failing)
            return (status, results[name]) if name in results else (status,)

        return call

    def named(self, name):
        return [arguments for called, *arguments in self.calls if called == name]


@pytest.fixture
def runtime(monkeypatch):
    stand_in = Runtime()
    monkeypatch.setattr(cuda_memory, "_runtime", lambda: stand_in)
    monkeypatch.setattr(cuda_memory, "ensure_context", lambda index: None)
    monkeypatch.setattr(torch.cuda, "device", lambda index: contextlib.nullcontext())
    return stand_in


def test_allocations_are_whole_blocks_and_freed_once(runtime):
    allocation = cuda_memory.DeviceAllocation(5, DEVICE)
    assert runtime.named("cudaMalloc") == [[2 << 20]]
    assert allocation.__cuda_array_interface__["data"] == (0x1000, False)
    assert allocation.__cuda_array_interface__["shape"] == (2 << 20,)
    assert allocation.handle() == bytes(range(64))
    del allocation
    gc.collect()
    assert runtime.named("cudaFree") == [[0x1000]]


def test_peers_are_mapped_and_unmapped(runtime):
    assert cuda_memory.open_peer(bytes(range(64)), DEVICE) == 0x2000
    ((handle, flags),) = runtime.named("cudaIpcOpenMemHandle")
    assert (handle.reserved, flags) == (bytes(range(64)), 1)
    cuda_memory.close_peer(0x2000, DEVICE)
    assert runtime.named("cudaIpcCloseMemHandle") == [[0x2000]]


def test_access_between_gpus(runtime):
    assert cuda_memory.bus_id(DEVICE) == "0000:1A:00.0"
    assert cuda_memory.reaches(DEVICE, "0000:1A:00.0"), "a GPU reaches itself"
    assert not cuda_memory.reaches(DEVICE, "0000:2B:00.0")
    runtime.failing = "cudaDeviceGetByPCIBusId"
    assert cuda_memory.reaches(DEVICE, "0000:2B:00.0"), "hidden GPUs are tried"


@pytest.mark.parametrize(
    ("failing", "use", "text"),
    [
        ("cudaMalloc", lambda: cuda_memory.DeviceAllocation(5, DEVICE), "allocating 2097152 bytes on cuda:0"),
        ("cudaIpcOpenMemHandle", lambda: cuda_memory.open_peer(b"", DEVICE), "mapping a peer's GPU memory"),
    ],
)
def test_failures_say_what_failed(runtime, failing, use, text):
    runtime.failing = failing
    with pytest.raises(CommunicationError, match=f"{text}.*cudaErrorDemo"):
        use()


def terms(call, operation, element, count):
    """The word that a rank sends at the start of a call."""
    return ((call + 1) & 0xFFFF) << 48 | operation << 40 | element << 32 | count


def workspace_with(call=0, peer=0, stage=0, aborted_by=0, own=0, others=0, failed=1):
    """A workspace whose kernels left this report."""
    workspace = PeerWorkspace.__new__(PeerWorkspace)
    workspace._rank, workspace._timeout = 2, 1.5
    workspace._report = torch.zeros(10, dtype=torch.int32)
    workspace._fields = workspace._report.numpy()
    workspace._words = workspace._fields.view("uint64")
    workspace._fields[:5] = failed, call, peer, stage, aborted_by
    workspace._words[3:5] = own, others
    return workspace


def test_reports_of_kernels_become_errors():
    workspace_with(failed=0).check()
    with pytest.raises(CommunicationError) as caught:
        workspace_with(call=41, peer=3, own=terms(41, 1, 3, 100)).check()
    assert "rank 2: all_reduce (oneshot), call 42 over peer memory: waited for data of rank 3" in str(caught.value)
    assert "for 1.5 s" in str(caught.value)
    with pytest.raises(CommunicationError, match=r"twoshot.*rank 3 \(stage 1\) when rank 0 gave up"):
        workspace_with(
            call=41, peer=3, stage=1, aborted_by=1, own=terms(41, 2, 1, 9), others=terms(39, 1, 1, 9)
        ).check()


def test_reports_name_what_other_ranks_called():
    with pytest.raises(CommunicationError) as caught:
        workspace_with(call=70_000, peer=1, own=terms(70_000, 1, 3, 100), others=terms(70_000, 4, 0, 64)).check()
    called = "this one called all_reduce (oneshot) of size 100 bfloat16, rank 1 called all_gather (oneshot) of size 64"
    assert f"ranks disagree: {called}." in str(caught.value)


def test_the_mirrors_agree_with_the_header():
    import re
    from pathlib import Path

    folder = Path(peer_workspace.__file__).parent / "include/warploom/comm"
    text = "".join((folder / name).read_text() for name in ("call.cuh", "mailbox.cuh", "exchange.cuh"))
    constants = dict(re.findall(r"constexpr \w+ (k\w+) = (\w+);", text))
    assert int(constants["kHeaderBytes"]) == peer_workspace.HEADER_BYTES
    assert int(constants["kMaxBlocks"]) == peer_workspace.MAX_BLOCKS
    assert int(constants["kMaxRanks"]) == peer_workspace.MAX_PEERS
    assert int(constants["kEmpty"].rstrip("u"), 16) == int.from_bytes(bytes([peer_workspace._EMPTY]) * 4, "little")
    counters = int(constants["kCounterBytes"]) * len(re.findall(r"^  k\w+,", text, re.MULTILINE)[:-1])
    slots = peer_workspace.SLOTS * peer_workspace.CHUNK_BYTES
    assert int(constants["kMaxChannels"]) * (counters + slots) == peer_workspace.STAGING_BYTES
