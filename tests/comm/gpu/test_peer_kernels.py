"""The peer-memory kernels on one GPU, where each rank is a stream."""

import random
from dataclasses import replace

import pytest
import torch
from comm_oracle import FLOATS, in_rank_order
from streams import FUSIONS, Streams

from warploom.comm.backends.peer_fusion import fits_kernel
from warploom.comm.epilogue import FusionTensors, apply_epilogue
from warploom.comm.problems.fusion import AllReduceFusionPattern, FusionProblem
from warploom.core.errors import CommunicationError
from warploom.core.testing import assert_close, cases

pytestmark = pytest.mark.gpu
KERNELS = ("oneshot", "twoshot")  # all-reduce
SIZES = (1, 2, 7, 8, 9, 1000, 4096, 65_537, 200_003)


def inputs(size, numel, dtype, offset=0):
    """One tensor a rank, starting `offset` elements past a 16-byte boundary."""
    torch.cuda.synchronize()
    xs = [torch.randn(numel + offset, device="cuda").to(dtype)[offset:] for _ in range(size)]
    torch.cuda.synchronize()
    return xs


@pytest.mark.parametrize(*cases(kernel=(*KERNELS, "twoshot long"), dtype=FLOATS, size=[2, 4, 8]))
def test_values_at_every_size_and_alignment(case):
    ranks = Streams(case.size)
    for numel in SIZES:
        for offset, in_place in ((0, False), (0, True), (1, False), (3, True)):
            xs = inputs(case.size, numel, case.dtype, offset)
            expected = in_rank_order(torch.stack(xs))
            outs = xs if in_place else [torch.full_like(x, float("nan")) for x in xs]
            torch.cuda.synchronize()
            ranks.reduce(case.kernel, outs, xs)
            ranks.check()
            for rank, out in enumerate(outs):
                assert torch.equal(out, expected), (
                    f"rank {rank}, {numel} elements, offset {offset}, in place {in_place}"
                )


@pytest.mark.parametrize(*cases(kernel=["reduce_scatter", "reduce_scatter long"], dtype=FLOATS, size=[2, 4, 8]))
def test_reduce_scatter_at_every_size_and_alignment(case):
    ranks = Streams(case.size)
    for numel in SIZES:
        for offset, in_place in ((0, False), (0, True), (1, False), (3, True)):
            xs = inputs(case.size, case.size * numel, case.dtype, offset)
            expected = in_rank_order(torch.stack(xs)).view(case.size, numel)
            parts = [x.view(case.size, numel)[rank] for rank, x in enumerate(xs)]
            outs = parts if in_place else [torch.full_like(part, float("nan")) for part in parts]
            torch.cuda.synchronize()
            ranks.reduce(case.kernel, outs, xs)
            ranks.check()
            for rank, out in enumerate(outs):
                assert torch.equal(out, expected[rank]), f"rank {rank}, {numel} elements, offset {offset}, {in_place=}"


@pytest.mark.parametrize("size", [2, 3, 8])
def test_all_gather_moves_any_bytes(size):
    ranks = Streams(size)
    for number in SIZES:
        for offset in (0, 1):
            memory = torch.randint(0, 256, (size, number + offset), dtype=torch.uint8, device="cuda")
            memory[:, ::3] = 0xFF  # what empty mailboxes hold
            xs = [row[offset:] for row in memory]
            outs = [torch.zeros(size, number, dtype=torch.uint8, device="cuda") for _ in xs]
            torch.cuda.synchronize()
            ranks.all_gather(outs, xs)
            ranks.check()
            for rank, out in enumerate(outs):
                assert torch.equal(out, memory[:, offset:]), f"rank {rank}, {number} bytes, offset {offset}"


def exchanged(size, largest, columns, seed):
    """A table of row counts, many of them 0, the rows of all ranks, and what each rank must get."""
    draw = random.Random(seed)
    table = [[draw.choice((0, 1, draw.randrange(largest))) for _ in range(size)] for _ in range(size)]
    xs = [torch.randint(0, 256, (sum(row), columns), dtype=torch.uint8, device="cuda") for row in table]
    parts = [x.split(row) for x, row in zip(xs, table, strict=True)]
    return table, xs, [torch.cat([part[rank] for part in parts]) for rank in range(size)]


@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_exchange_of_uneven_splits(size):
    ranks = Streams(size)
    # Rows of whole packets, of whole words and of single bytes; the largest go around the rings of 8 blocks many times.
    for seed, (largest, columns) in enumerate(((40, 16), (3000, 2048), (5000, 36), (100_001, 1), (60_000, 7))):
        table, xs, expected = exchanged(size, largest, columns, seed)
        outs = [torch.zeros_like(want) for want in expected]
        torch.cuda.synchronize()
        ranks.exchange_all_to_all(outs, xs, table)
        ranks.check()
        for rank, out in enumerate(outs):
            assert torch.equal(out, expected[rank]), f"rank {rank}, up to {largest} rows of {columns} bytes"


@pytest.mark.parametrize("size", [2, 4, 8])
def test_exchange_gathers_any_bytes(size):
    ranks = Streams(size)
    for number in (1, 4096, 5_000_000, 5_000_001):
        for offset in (0, 1):
            memory = torch.randint(0, 256, (size, number + offset), dtype=torch.uint8, device="cuda")
            xs = [row[offset:] for row in memory]
            outs = [torch.zeros(size, number, dtype=torch.uint8, device="cuda") for _ in xs]
            torch.cuda.synchronize()
            ranks.exchange_all_gather(outs, xs)
            ranks.check()
            for rank, out in enumerate(outs):
                assert torch.equal(out, memory[:, offset:]), f"rank {rank}, {number} bytes, offset {offset}"


def test_kernels_share_their_mailboxes():
    ranks = Streams(4)
    xs = inputs(4, 4000, torch.float32)
    total, gathered = in_rank_order(torch.stack(xs)), torch.stack(xs)
    outs, parts = [torch.zeros_like(x) for x in xs], [torch.zeros(1000, device="cuda") for _ in xs]
    rows, exchanged_rows = ([torch.zeros_like(gathered) for _ in xs] for _ in range(2))
    torch.cuda.synchronize()
    for _ in range(20):
        ranks.reduce("oneshot", outs, xs)
        ranks.all_gather(rows, xs)
        ranks.reduce("reduce_scatter", parts, xs)
        ranks.reduce("twoshot long", outs, xs)
        ranks.reduce("reduce_scatter long", parts, xs)
        ranks.reduce("twoshot", outs, xs)
        ranks.all_gather(rows, xs)
        ranks.exchange_all_gather(exchanged_rows, xs)
        ranks.exchange_all_gather(exchanged_rows, xs)
    ranks.check()
    for rank in range(4):
        assert torch.equal(outs[rank], total)
        assert torch.equal(parts[rank], total[1000 * rank : 1000 * rank + 1000])
        assert torch.equal(rows[rank], gathered)
        assert torch.equal(exchanged_rows[rank], gathered)


PATTERNS = [pattern for pattern in AllReduceFusionPattern if "Out" in pattern.name or not pattern.quantisation]


def fusion_problem(x, size, pattern, group):
    tokens, hidden = x.shape
    return FusionProblem(
        device_type="cuda", arch=90, device_name="a GPU", size=size, nbytes=x.nbytes, dtype=x.dtype, tokens=tokens,
        hidden=hidden, pattern=pattern, group_size=group if pattern.quantisation == "group" else 0,
    )  # fmt: skip


def fusion_tensors(x, pattern, group, in_place):
    """All that a pattern reads and writes."""
    (tokens, hidden), like = x.shape, {"device": "cuda", "dtype": x.dtype}
    shape = (tokens, hidden)
    normalises, quantisation = pattern.normalises, pattern.quantisation
    residual = torch.randn(shape, generator=torch.Generator("cuda").manual_seed(7), **like) if normalises else None
    columns = {"token": 1, "group": hidden // group}.get(quantisation)
    return FusionTensors(
        input=x,
        output=x if in_place else torch.empty(shape, **like),
        residual_out=residual if in_place or not normalises else torch.empty(shape, **like),
        norm_out=torch.empty(shape, **like) if normalises else None,
        quant_out=torch.empty(shape, device="cuda", dtype=torch.float8_e4m3fn) if quantisation else None,
        scale_out=torch.empty(tokens, columns, device="cuda") if columns else None,
        residual_in=residual,
        rms_gamma=torch.linspace(0.5, 1.5, hidden, **like) if normalises else None,
        scale_factor=torch.full((1,), 0.02, device="cuda") if quantisation == "tensor" else None,
        rms_eps=1e-5,
        weight_bias=0.25,
    )


def assert_finished(problem, tensors, total, residual):
    """What a rank has written, against the same steps in torch."""
    expected = fusion_tensors(total.clone(), problem.pattern, problem.group_size or 128, False)
    expected = replace(expected, residual_in=residual)
    apply_epilogue(problem, expected, total)
    assert torch.equal(tensors.output, total)
    if not problem.pattern.normalises:
        return
    assert torch.equal(tensors.residual_out, expected.residual_out)
    assert_close(tensors.norm_out, expected.norm_out, dtype=problem.dtype)
    if problem.pattern.quantisation:
        scales = tensors.scale_factor if tensors.scale_out is None else tensors.scale_out
        columns = problem.hidden // (1 if tensors.scale_out is None else scales.shape[1])
        values = tensors.quant_out.float() * (
            scales.repeat_interleave(columns, 1) if tensors.scale_out is not None else scales
        )
        assert_close(values, tensors.norm_out.double(), dtype=torch.float8_e4m3fn)


@pytest.mark.parametrize(
    *cases(kernel=list(FUSIONS), pattern=PATTERNS, dtype=[torch.bfloat16, torch.float32], size=[4]),
)
def test_fused_rows(case):
    check_fused_rows(case)


@pytest.mark.parametrize(
    *cases(kernel=list(FUSIONS), pattern=[PATTERNS[-1]], dtype=[torch.bfloat16, torch.float32], size=[2, 8])
)
def test_fused_rows_of_other_sizes(case):
    check_fused_rows(case)


def check_fused_rows(case):
    size, group = case.size, 128
    ranks = Streams(size)
    for tokens, hidden in ((1, 1024), (3, 8192), (17, 256), (20, 1152), (2, 128)):
        for in_place in (False, True):
            xs = [x.view(tokens, hidden) for x in inputs(size, tokens * hidden, case.dtype)]
            problem = fusion_problem(xs[0], size, case.pattern, group)
            total = in_rank_order(torch.stack(xs)).to("cuda")
            tensors = [fusion_tensors(x, case.pattern, group, in_place) for x in xs]
            residual = None if tensors[0].residual_in is None else tensors[0].residual_in.clone()
            assert all(fits_kernel(problem, one) for one in tensors)
            torch.cuda.synchronize()
            ranks.fuse(case.kernel, problem, tensors)
            ranks.check()
            for one in tensors:
                assert_finished(problem, one, total, residual)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_pattern_of_an_empty_mailbox_passes_as_nan(kernel):
    ranks = Streams(2)
    for dtype, bits in ((torch.float32, torch.int32), (torch.bfloat16, torch.int16), (torch.float16, torch.int16)):
        xs = inputs(2, 64, dtype)
        for x in xs:
            x[::3].view(bits).fill_(-1)
        outs = [torch.zeros_like(x) for x in xs]
        torch.cuda.synchronize()
        ranks.reduce(kernel, outs, xs)
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
            ranks.reduce(kernel, outs, xs)
            ranks.check()
            wrong[0] += (outs[0] != want).sum()
    torch.cuda._sleep(1)
    torch.cuda.synchronize()
    for call in range(calls):
        chosen = draw.randrange(len(sets))
        xs, _ = sets[chosen]
        kernel, late = draw.choice(KERNELS), draw.randrange(size)
        for rank in range(size):
            with torch.cuda.stream(ranks.streams[rank]):
                if rank == late and call % 4 == 0:
                    torch.cuda._sleep(draw.randrange(50_000))
                out = torch.full_like(xs[rank], float("nan"))
                ranks.reduce(kernel, {rank: out}, xs, ranks=[rank])
                wrong[rank] += (out != expected[chosen]).sum()
    ranks.check()
    assert [int(count) for count in wrong] == [0] * size


def test_back_to_back_exchanges_of_skewed_ranks():
    size, calls = 4, 600
    ranks = Streams(size)
    draw = random.Random(3)
    sets = [exchanged(size, largest, 48, largest) for largest in (1, 50, 9000)]
    numbers = inputs(size, 5000, torch.float32)
    total = in_rank_order(torch.stack(numbers))
    wrong = [torch.zeros((), dtype=torch.int64, device="cuda") for _ in range(size)]

    def step(chosen, rank):
        """One exchange and an all-reduce, which needs mailboxes that its peers have emptied."""
        table, xs, expected = sets[chosen]
        out, reduced = torch.zeros_like(expected[rank]), torch.zeros_like(total)
        ranks.exchange_all_to_all({rank: out}, xs, table, ranks=[rank])
        ranks.reduce("oneshot", {rank: reduced}, numbers, ranks=[rank])
        wrong[rank].add_((out != expected[rank]).sum()).add_((reduced != total).sum())

    # As above: what is used here is loaded while no rank waits.
    for table, xs, expected in sets:
        outs, reduced = [torch.zeros_like(want) for want in expected], [torch.zeros_like(total) for _ in numbers]
        torch.cuda.synchronize()
        ranks.exchange_all_to_all(outs, xs, table)
        ranks.reduce("oneshot", reduced, numbers)
        ranks.check()
        for rank in range(size):
            wrong[rank].add_((outs[rank] != expected[rank]).sum()).add_((reduced[rank] != total).sum())
    torch.cuda._sleep(1)
    torch.cuda.synchronize()
    for _ in range(calls):
        chosen, late = draw.randrange(len(sets)), draw.randrange(size)
        for rank in range(size):
            with torch.cuda.stream(ranks.streams[rank]):
                if rank == late:
                    torch.cuda._sleep(draw.randrange(50_000))
                step(chosen, rank)
    ranks.check()
    assert [int(count) for count in wrong] == [0] * size


def test_exchanges_in_replayed_graphs():
    size = 2
    ranks = Streams(size)
    table, xs, expected = exchanged(size, 9000, 64, 5)
    outs = [torch.zeros_like(want) for want in expected]
    torch.cuda.synchronize()
    ranks.exchange_all_to_all(outs, xs, table)
    ranks.check()
    graphs = []
    for rank in range(size):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=ranks.streams[rank]):
            ranks.exchange_all_to_all(outs, xs, table, ranks=[rank])
            ranks.exchange_all_to_all(outs, xs, table, ranks=[rank])
        graphs.append(graph)
    for _ in range(50):
        for rank in range(size):
            with torch.cuda.stream(ranks.streams[rank]):
                outs[rank].zero_()
                graphs[rank].replay()
    ranks.check()
    assert all(torch.equal(out, want) for out, want in zip(outs, expected, strict=True))


def test_replayed_graphs_go_on_counting():
    size = 2
    ranks = Streams(size)
    xs = inputs(size, 5000, torch.bfloat16)
    outs = [torch.zeros_like(x) for x in xs]
    graphs = []
    ranks.reduce("oneshot", outs, xs)
    ranks.reduce("twoshot", outs, xs)
    ranks.check()
    for rank in range(size):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=ranks.streams[rank]):
            for kernel in ("oneshot", "twoshot", "oneshot"):
                ranks.reduce(kernel, outs, xs, ranks=[rank])
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
    ranks.reduce("oneshot", outs, xs, ranks=[0, 1, 3])
    torch.cuda.synchronize()
    for rank in (0, 1, 3):
        with pytest.raises(
            CommunicationError, match=f"rank {rank}: all_reduce \\(oneshot\\), call 1 .* data of rank 2"
        ):
            ranks.workspaces[rank].check()
        assert outs[rank].isnan().all()
    ranks.workspaces[2].check()
    ranks.reduce("twoshot", outs, xs)  # what follows ends at once instead of waiting again
    torch.cuda.synchronize()


def test_an_exchange_with_a_missing_rank_is_reported():
    ranks = Streams(4, timeout=0.3)
    xs = [torch.zeros(100_000, dtype=torch.uint8, device="cuda") for _ in range(4)]
    outs = [torch.zeros(4, 100_000, dtype=torch.uint8, device="cuda") for _ in xs]
    torch.cuda.synchronize()
    ranks.exchange_all_gather(outs, xs, ranks=[0, 1, 3])
    torch.cuda.synchronize()
    for rank in (0, 1, 3):
        with pytest.raises(CommunicationError, match=f"rank {rank}: .* \\(exchange\\), call 1 .* data of rank 2"):
            ranks.workspaces[rank].check()
        assert outs[rank][2].eq(0xFF).all()
        assert outs[rank][[0, 1, 3]].eq(0).all()
