"""The all-reduce kernels on one GPU: each rank is a stream, and their mailboxes lie in the same memory."""

import random
from types import SimpleNamespace

import pytest
import torch
from comm_oracle import FLOATS, in_rank_order

from warploom.comm.backends.oneshot.all_reduce import OneShotAllReduce
from warploom.comm.backends.peer_all_reduce import AllReduceParams, spec
from warploom.comm.backends.twoshot.all_reduce import TwoShotAllReduce
from warploom.comm.peer_workspace import HEADER_BYTES, PeerWorkspace
from warploom.core.errors import CommunicationError
from warploom.core.testing import cases

pytestmark = pytest.mark.gpu
KERNELS = {"oneshot": OneShotAllReduce.kernel, "twoshot": TwoShotAllReduce.kernel}
HALF = 4 << 20
BLOCKS = 8  # a rank; the blocks of all ranks must be resident at once


class Streams:
    """Ranks as streams of one GPU."""

    def __init__(self, size, timeout=20.0):
        self.size = size
        self.device = torch.device("cuda", torch.cuda.current_device())
        memory = [torch.empty(HEADER_BYTES + 2 * HALF, dtype=torch.uint8, device=self.device) for _ in range(size)]
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

    def all_reduce(self, kernel, outs, xs, threads=256, ranks=None):
        """Launch the kernel on every stream; the host waits for none."""
        loaded = spec(KERNELS[kernel], xs[0].dtype, self.size).load(self.device)
        for rank in range(self.size) if ranks is None else ranks:
            params = AllReduceParams(input=xs[rank], output=outs[rank], numel=xs[rank].numel())
            stream = self.streams[rank].cuda_stream
            loaded.launch(BLOCKS, threads, self.workspaces[rank].arguments, params, stream=stream)

    def check(self):
        torch.cuda.synchronize()
        for workspace in self.workspaces:
            workspace.check()


def inputs(size, numel, dtype, offset=0):
    """One tensor a rank, starting `offset` elements past a 16-byte boundary."""
    torch.cuda.synchronize()
    xs = [torch.randn(numel + offset, device="cuda").to(dtype)[offset:] for _ in range(size)]
    torch.cuda.synchronize()
    return xs


@pytest.mark.parametrize(*cases(kernel=list(KERNELS), dtype=FLOATS, size=[2, 4]))
def test_values_at_every_size_and_alignment(case):
    ranks = Streams(case.size)
    for numel in (1, 2, 7, 8, 9, 1000, 4096, 65_537, 200_003):
        for offset, in_place in ((0, False), (0, True), (1, False), (3, True)):
            xs = inputs(case.size, numel, case.dtype, offset)
            expected = in_rank_order(torch.stack(xs))
            outs = xs if in_place else [torch.full_like(x, float("nan")) for x in xs]
            torch.cuda.synchronize()
            ranks.all_reduce(case.kernel, outs, xs)
            ranks.check()
            for rank, out in enumerate(outs):
                assert torch.equal(out, expected), (
                    f"rank {rank}, {numel} elements, offset {offset}, in place {in_place}"
                )


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_pattern_of_an_empty_mailbox_passes_as_nan(kernel):
    ranks = Streams(2)
    for dtype, bits in ((torch.float32, torch.int32), (torch.bfloat16, torch.int16), (torch.float16, torch.int16)):
        xs = inputs(2, 64, dtype)
        for x in xs:
            x[::3].view(bits).fill_(-1)
        outs = [torch.zeros_like(x) for x in xs]
        torch.cuda.synchronize()
        ranks.all_reduce(kernel, outs, xs)
        ranks.check()
        assert outs[0][::3].isnan().all()
        assert torch.equal(outs[0][1::3], xs[0][1::3] + xs[1][1::3])
        assert torch.equal(outs[0].view(bits), outs[1].view(bits))


def test_back_to_back_calls_of_skewed_ranks():
    size, calls = 4, 3000
    ranks = Streams(size)
    draw = random.Random(1)
    sets = [(inputs(size, numel, dtype), dtype) for numel in (5, 3000, 40_000) for dtype in FLOATS]
    expected = [in_rank_order(torch.stack(xs)) for xs, _ in sets]
    wrong = [torch.zeros((), dtype=torch.int64, device="cuda") for _ in range(size)]
    for kernel in KERNELS:
        # CUDA loads a kernel at its first use and may wait for the device to idle, which a rank that waits for its
        # peers never lets happen: use each of ours and of torch's once before.
        for (xs, _), want in zip(sets, expected, strict=True):
            outs = [torch.full_like(x, float("nan")) for x in xs]
            torch.cuda.synchronize()
            ranks.all_reduce(kernel, outs, xs)
            ranks.check()
            wrong[0] += (outs[0] != want).sum()
    torch.cuda._sleep(1)
    torch.cuda.synchronize()
    for call in range(calls):
        chosen = draw.randrange(len(sets))
        xs, _ = sets[chosen]
        kernel, late = draw.choice(list(KERNELS)), draw.randrange(size)
        for rank in range(size):
            with torch.cuda.stream(ranks.streams[rank]):
                if rank == late and call % 4 == 0:
                    torch.cuda._sleep(draw.randrange(50_000))
                out = torch.full_like(xs[rank], float("nan"))
                ranks.all_reduce(kernel, {rank: out}, xs, ranks=[rank])
                wrong[rank] += (out != expected[chosen]).sum()
    ranks.check()
    assert [int(count) for count in wrong] == [0] * size


def test_replayed_graphs_go_on_counting():
    size = 2
    ranks = Streams(size)
    xs = inputs(size, 5000, torch.bfloat16)
    outs = [torch.zeros_like(x) for x in xs]
    graphs = []
    ranks.all_reduce("oneshot", outs, xs)
    ranks.all_reduce("twoshot", outs, xs)
    ranks.check()
    for rank in range(size):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=ranks.streams[rank]):
            for kernel in ("oneshot", "twoshot", "oneshot"):
                ranks.all_reduce(kernel, outs, xs, ranks=[rank])
        graphs.append(graph)
    for replay in range(200):
        for rank in range(size):
            with torch.cuda.stream(ranks.streams[rank]):
                xs[rank].fill_(replay % 64 + rank)
                graphs[rank].replay()
        if replay % 20 == 0:
            ranks.check()
            assert all(out.eq(2 * (replay % 64) + 1).all() for out in outs)
    ranks.check()


def test_a_missing_rank_is_reported_and_leaves_nan():
    ranks = Streams(4, timeout=0.3)
    xs = inputs(4, 1000, torch.float32)
    outs = [torch.zeros_like(x) for x in xs]
    torch.cuda.synchronize()
    ranks.all_reduce("oneshot", outs, xs, ranks=[0, 1, 3])
    torch.cuda.synchronize()
    for rank in (0, 1, 3):
        with pytest.raises(
            CommunicationError, match=f"rank {rank}: all_reduce \\(oneshot\\), call 1 .* data of rank 2"
        ):
            ranks.workspaces[rank].check()
        assert outs[rank].isnan().all()
    ranks.workspaces[2].check()
    ranks.all_reduce("twoshot", outs, xs)  # what follows ends at once instead of waiting again
    torch.cuda.synchronize()
