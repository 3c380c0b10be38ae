"""All-reduce between GPUs: ``mpirun -n N python -m pytest -m multigpu tests/comm``, one GPU a rank.

Ranks may share a GPU (``mpirun -n 2`` with one): their kernels then take turns, slowly, and NCCL's tests skip.
"""

import hashlib
import random
import time

import pytest
import torch
from comm_oracle import FLOATS, in_rank_order
from gpu_ranks import KERNELS, be_late, calls_for, inputs

from warploom.comm import Communicator, all_reduce
from warploom.core.errors import CommunicationError, UnsupportedError
from warploom.core.settings import settings
from warploom.core.testing import assert_close, cases

pytestmark = pytest.mark.multigpu(count=1)
MIB = 1 << 20


def same_on_all_ranks(comm, x):
    digest = hashlib.sha256(x.contiguous().view(torch.uint8).cpu().numpy().tobytes()).digest()
    return len(set(comm.transport.exchange(digest))) == 1


@pytest.mark.parametrize(*cases(backend=KERNELS, dtype=FLOATS, in_place=[False, True], offset=[0, 1]))
def test_values_and_bits(gpus, case):
    for numel in (1, 2, 7, 8, 9, 500, 4096, 65_537, 1_000_003, 8 * MIB // case.dtype.itemsize):
        messages = inputs(gpus, numel, case.dtype, seed=numel, offset=case.offset)
        expected = in_rank_order(torch.stack(messages))
        x = messages[gpus.rank]
        out = x if case.in_place else torch.full_like(x, float("nan"))
        result = all_reduce(x, gpus, out=out, backend=case.backend)
        torch.cuda.synchronize()
        gpus.check()
        assert torch.equal(result, expected), f"{numel} elements: {int((result != expected).sum())} differ"
        assert same_on_all_ranks(gpus, result)


def test_auto_takes_a_kernel_and_nccl_past_its_limit(gpus):
    x = inputs(gpus, 1000, torch.bfloat16)[gpus.rank]
    from warploom.comm.all_reduce import ALL_REDUCE
    from warploom.comm.problems.all_reduce import AllReduceProblem

    assert ALL_REDUCE.select(AllReduceProblem.describe(gpus, x)).name in KERNELS
    large = torch.empty(200 * MIB, dtype=torch.uint8, device=gpus.device).view(torch.bfloat16)
    table = ALL_REDUCE.explain(AllReduceProblem.describe(gpus, large))
    assert table.chosen == ("reference" if gpus.topology.shares_gpus else "nccl"), str(table)
    with pytest.raises(UnsupportedError, match="workspace_bytes"):
        all_reduce(large, gpus, backend="oneshot")


def test_strides_and_empty_tensors(gpus):
    x = torch.full((64, 48), float(gpus.rank), device=gpus.device)
    total = float(sum(range(gpus.size)))
    assert all_reduce(x.t(), gpus, backend="oneshot").eq(total).all()
    assert all_reduce(x[:, ::3], gpus, backend="twoshot").eq(total).all()
    wide = torch.zeros(64, 96, device=gpus.device)
    all_reduce(x, gpus, out=wide[:, ::2], backend="oneshot")
    assert wide[:, ::2].eq(total).all()
    assert wide[:, 1::2].eq(0).all()
    assert all_reduce(x[:0], gpus, backend="oneshot").numel() == 0
    gpus.check()


def soak(comm, calls, skew):
    """Mixed kernels, sizes and dtypes back to back; returns how many elements were wrong."""
    shared, own = random.Random(7), random.Random(comm.rank)
    shapes = [(numel, dtype) for numel in (1, 777, 16_384, 130_001) for dtype in FLOATS]
    sets = [inputs(comm, numel, dtype, seed) for seed, (numel, dtype) in enumerate(shapes)]
    expected = [in_rank_order(torch.stack(messages)) for messages in sets]
    wrong = torch.zeros((), dtype=torch.int64, device=comm.device)
    for call in range(calls):
        chosen, backend, in_place = shared.randrange(len(sets)), shared.choice(KERNELS), shared.random() < 0.5
        if skew:
            be_late(own)
        x = sets[chosen][comm.rank].clone()
        out = all_reduce(x, comm, out=x if in_place else torch.full_like(x, float("nan")), backend=backend)
        wrong += (out != expected[chosen]).sum()
        if call % 500 == 499:  # a queue of thousands of launches would hide who is behind
            torch.cuda.synchronize()
            comm.check()
    torch.cuda.synchronize()
    comm.check()
    return int(wrong)


def test_thousands_of_calls_back_to_back(gpus):
    assert soak(gpus, calls_for(gpus, 5000), skew=False) == 0


def test_skewed_ranks(gpus):
    assert soak(gpus, calls_for(gpus, 2000), skew=True) == 0


def test_graphs_are_captured_and_replayed(gpus):
    sizes = (100, 8192, 70_001)
    xs = [torch.zeros(n, dtype=torch.bfloat16, device=gpus.device) for n in sizes]
    outs = [torch.zeros_like(x) for x in xs]

    def step():
        for x, out in zip(xs, outs, strict=True):
            for backend in KERNELS:
                all_reduce(x, gpus, out=out, backend=backend)

    step()  # kernels compile outside the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    own = random.Random(gpus.rank)
    for replay in range(calls_for(gpus, 1000)):
        for x in xs:
            x.fill_(replay % 16 + gpus.rank)
        if own.random() < 0.05:
            time.sleep(own.random() * 0.005)
        graph.replay()
        if replay % 10 == 0:
            if replay % 20 == 0:
                all_reduce(xs[0], gpus, out=outs[0], backend="oneshot")  # calls outside the graph go between
            torch.cuda.synchronize()
            gpus.check()
            total = gpus.size * (replay % 16) + sum(range(gpus.size))
            assert all(out.eq(total).all() for out in outs), f"replay {replay}"


def test_two_streams_of_one_communicator(gpus):
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    xs = inputs(gpus, 20_000, torch.float16)
    expected = in_rank_order(torch.stack(xs))
    wrong = [torch.zeros((), dtype=torch.int64, device=gpus.device) for _ in streams]
    torch.cuda.synchronize()
    for call in range(calls_for(gpus, 600)):
        side = call % 2 if call % 5 else 0
        with torch.cuda.stream(streams[side]):
            out = all_reduce(xs[gpus.rank], gpus, backend=KERNELS[call % 2])
            wrong[side] += (out != expected).sum()
    torch.cuda.synchronize()
    gpus.check()
    assert [int(count) for count in wrong] == [0, 0]


def test_two_communicators_on_two_streams(gpus):
    with Communicator.from_mpi(device=gpus.device, timeout=20.0) as other:
        streams = {gpus: torch.cuda.Stream(), other: torch.cuda.Stream()}
        xs = inputs(gpus, 60_000, torch.bfloat16)
        expected = in_rank_order(torch.stack(xs))
        wrong = {comm: torch.zeros((), dtype=torch.int64, device=gpus.device) for comm in streams}
        torch.cuda.synchronize()
        order = list(streams)
        own = random.Random(gpus.rank)
        for call in range(calls_for(gpus, 600)):
            own.shuffle(order)  # ranks issue the two in different orders: they must not block each other
            for comm in order:
                with torch.cuda.stream(streams[comm]):
                    out = all_reduce(xs[gpus.rank], comm, backend=KERNELS[call % 2])
                    wrong[comm] += (out != expected).sum()
        torch.cuda.synchronize()
        other.check()
        gpus.check()
        assert [int(count) for count in wrong.values()] == [0, 0]


def test_debug_checks_see_different_calls(gpus):
    with settings.override(debug_checks=True):
        with pytest.raises(CommunicationError, match="ranks disagree"):
            all_reduce(torch.zeros(4 + gpus.rank, device=gpus.device), gpus)
        assert all_reduce(torch.ones(4, device=gpus.device), gpus).eq(gpus.size).all()


def test_a_tensor_on_another_gpu_is_refused(gpus):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    elsewhere = torch.device("cuda", (gpus.device.index + 1) % torch.cuda.device_count())
    with pytest.raises(ValueError, match="`comm` must be a communicator on"):
        all_reduce(torch.ones(1, device=elsewhere), gpus)


def test_torch_compile(gpus):
    def program(x):
        return all_reduce(x * 2, gpus, backend="oneshot") + 1

    compiled = torch.compile(program, fullgraph=True, backend="aot_eager")
    x = torch.full((300,), float(gpus.rank), device=gpus.device)
    assert_close(compiled(x), program(x))
    gpus.check()


def test_symmetric_buffers_reach_every_gpu(gpus):
    from cuda.bindings import runtime

    buffer = gpus.symmetric_buffer(1 * MIB)
    buffer.local.fill_(gpus.rank + 1)
    torch.cuda.synchronize()
    gpus.barrier()
    for rank, pointer in enumerate(buffer.pointers):
        copy = torch.zeros(1 * MIB, dtype=torch.uint8, device=gpus.device)
        kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        (status,) = runtime.cudaMemcpy(copy.data_ptr(), pointer, copy.numel(), kind)
        assert int(status) == 0, status
        assert copy.eq(rank + 1).all()
    gpus.barrier()
    buffer.close()
