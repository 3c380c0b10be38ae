"""The library backends between GPUs, and what is composed of collectives."""

import datetime
import random
import time

import pytest
import torch
import torch.distributed as dist
from comm_oracle import FLOATS, in_rank_order, message, messages, reduced

from warploom.comm import (
    AllReduceFusionPattern,
    Communicator,
    MoeAlltoAll,
    all_gather,
    all_reduce,
    all_to_all,
    allreduce_fusion,
    create_allreduce_fusion_workspace,
    reduce_scatter,
)
from warploom.core.errors import UnsupportedError
from warploom.core.testing import assert_close, cases

pytestmark = pytest.mark.multigpu(count=1)


@pytest.fixture(params=["nccl", "reference"])
def backend(request, gpus):
    if request.param == "nccl" and gpus.topology.shares_gpus:
        pytest.skip("NCCL refuses ranks that share a GPU")
    return request.param


def own(comm, shape, dtype, seed=0):
    return message(comm.rank, shape, dtype, seed).to(comm.device)


@pytest.mark.parametrize(*cases(dtype=[*FLOATS, torch.int32], op=["sum", "avg", "max", "min"]))
def test_reductions(gpus, backend, case):
    if case.op == "avg" and not case.dtype.is_floating_point:
        with pytest.raises(UnsupportedError, match="averages floating-point"):
            all_reduce(torch.ones(2, dtype=case.dtype, device=gpus.device), gpus, "avg", backend="nccl")
        return
    shape = (4 * gpus.size, 33)
    x = own(gpus, shape, case.dtype)
    expected = reduced(messages(gpus.size, shape, case.dtype), case.op)
    # NCCL rounds 16-bit sums at every hop.
    tolerance = {"rtol": 0.05, "atol": 0.05} if backend == "nccl" and case.dtype.itemsize == 2 else {}
    assert_close(all_reduce(x, gpus, case.op, backend=backend), expected, dtype=case.dtype, **tolerance)
    part = reduce_scatter(x, gpus, case.op, backend=backend)
    assert_close(part, expected[4 * gpus.rank : 4 * gpus.rank + 4], dtype=case.dtype, **tolerance)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("numel", [1, 33, 100_001, 2_000_001])
def test_reduce_scatter_over_peer_memory(gpus, dtype, numel):
    shape = (gpus.size, numel)
    part = reduce_scatter(own(gpus, shape, dtype), gpus, backend="oneshot")
    expected = in_rank_order(messages(gpus.size, shape, dtype))[gpus.rank : gpus.rank + 1]
    assert torch.equal(part.cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.int64])
@pytest.mark.parametrize("rows", [1, 5, 3000])
def test_all_gather_over_peer_memory(gpus, dtype, rows):
    x = own(gpus, (rows, 7), dtype)
    for dim in (0, 1):
        gathered = all_gather(x, gpus, dim, backend="oneshot")
        expected = torch.cat(list(messages(gpus.size, (rows, 7), dtype)), dim)
        assert torch.equal(gathered.cpu().view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize("rows", [1, 5, 300_000])
def test_all_gather_in_chunks(gpus, rows):
    gathered = all_gather(own(gpus, (rows, 7), torch.bfloat16), gpus, backend="exchange")
    assert torch.equal(gathered.cpu(), messages(gpus.size, (rows, 7), torch.bfloat16).flatten(0, 1))


@pytest.mark.parametrize(*cases(dtype=[torch.bfloat16, torch.uint8, torch.int64], columns=[1, 3, 1024]))
def test_all_to_all_over_peer_memory(gpus, case):
    for largest in (1, 30, 3000):
        table = torch.randint(0, largest + 1, (gpus.size, gpus.size), generator=torch.Generator().manual_seed(largest))
        table *= torch.arange(gpus.size**2).view_as(table) % 3 != 0  # some get nothing
        sent, received = table[gpus.rank].tolist(), table[:, gpus.rank].tolist()
        rows = [message(rank, (int(row.sum()), case.columns), case.dtype, largest) for rank, row in enumerate(table)]
        parts = [of_rank.split(row.tolist())[gpus.rank] for of_rank, row in zip(rows, table, strict=True)]
        result = all_to_all(rows[gpus.rank].to(gpus.device), gpus, received, sent, backend="exchange")
        assert torch.equal(result.cpu().view(torch.uint8), torch.cat(parts).view(torch.uint8))
    torch.cuda.synchronize()
    gpus.check()


def test_all_to_all_in_a_graph(gpus):
    x = own(gpus, (8 * gpus.size, 512), torch.bfloat16)
    out = all_to_all(x, gpus, backend="exchange")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        all_to_all(x, gpus, out=out, backend="exchange")
    for replay in range(3):
        x.fill_(replay * gpus.size + gpus.rank)
        graph.replay()
        senders = torch.arange(gpus.size, device=gpus.device).repeat_interleave(8) + replay * gpus.size
        assert out.eq(senders[:, None]).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.int64])
def test_moving_data(gpus, backend, dtype):
    shape = (2 * gpus.size, 16)
    x = own(gpus, shape, dtype)
    stack = messages(gpus.size, shape, dtype).to(gpus.device).view(torch.uint8)
    for dim in (0, 1):
        gathered = all_gather(x, gpus, dim, backend=backend)
        expected = torch.cat(list(messages(gpus.size, shape, dtype)), dim).to(gpus.device)
        assert torch.equal(gathered.view(torch.uint8), expected.view(torch.uint8))
    rows = slice(2 * gpus.rank, 2 * gpus.rank + 2)
    assert torch.equal(all_to_all(x, gpus, backend=backend).view(torch.uint8), stack[:, rows].flatten(0, 1))
    sent = [rank + gpus.rank for rank in range(gpus.size)]
    uneven = all_to_all(own(gpus, (sum(sent), 3), torch.float32), gpus, sent, sent, backend=backend)
    assert uneven.shape == (sum(sent), 3)


# With more tokens some blocks sum while others finish rows.
@pytest.mark.parametrize("shape", [(16, 1024), (1000, 4096)], ids=str)
@pytest.mark.parametrize("name", ["oneshot", "twoshot", "fused_oneshot", "fused_twoshot", "nccl"])
def test_fusion(gpus, name, shape):
    if name == "nccl" and gpus.topology.shares_gpus:
        pytest.skip("NCCL refuses ranks that share a GPU")
    dtype, (tokens, hidden) = torch.bfloat16, shape
    workspace = create_allreduce_fusion_workspace(
        gpus, max_token_num=tokens, hidden_dim=hidden, dtype=dtype, backend=name
    )
    residual, gamma = (message(99, s, dtype).to(gpus.device) for s in (shape, shape[1:]))
    outputs = {key: torch.empty(shape, dtype=dtype, device=gpus.device) for key in ("residual_out", "norm_out")}
    scales = torch.empty(tokens, hidden // 128, device=gpus.device)
    codes = allreduce_fusion(
        own(gpus, shape, dtype), workspace, AllReduceFusionPattern.kARResidualRMSNormOutGroupFP8Quant,
        residual_in=residual, rms_gamma=gamma, scale_out=scales, **outputs,
    )  # fmt: skip
    total = in_rank_order(messages(gpus.size, shape, dtype)).double() + residual.double().cpu()
    loose = {"rtol": 0.05, "atol": 0.05}
    assert_close(outputs["residual_out"], total, dtype=dtype, **(loose if name == "nccl" else {}))
    norm = torch.nn.functional.rms_norm(outputs["residual_out"].double(), shape[1:], gamma.double(), eps=1e-6)
    assert_close(outputs["norm_out"], norm, dtype=dtype)
    values = codes.float().unflatten(-1, (-1, 128)) * scales.unsqueeze(-1)
    assert_close(values.flatten(-2), norm, dtype=torch.float8_e4m3fn)


@pytest.mark.parametrize("backend", ["nccl", "oneshot", "direct", "reference"])
def test_dispatch_and_combine_in_a_graph(gpus, backend):
    if backend == "nccl" and gpus.topology.shares_gpus:
        pytest.skip("NCCL refuses ranks that share a GPU")
    tokens, top_k, hidden = 32, 4, 256
    experts_total = 8 * gpus.size
    generator = torch.Generator().manual_seed(gpus.rank)
    experts = (
        torch.rand(tokens, experts_total, generator=generator).argsort(1)[:, :top_k].to(torch.int32).to(gpus.device)
    )
    x = own(gpus, (tokens, hidden), torch.bfloat16)
    moe = MoeAlltoAll(gpus, tokens, top_k, experts_total, backend=backend)

    def step():
        """Each rank multiplies by how many of the token's experts it owns: together by all of them."""
        rows, ids = moe.dispatch(experts, [x, experts], tokens, -1, 1)
        return moe.combine(rows * (ids >= 0).sum(-1, keepdim=True), tokens)

    assert_close(step(), x.double() * top_k, rtol=0.03)
    if backend == "reference":
        return
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    for _ in range(3):
        x.copy_(torch.randn_like(x))
        graph.replay()
        assert_close(out, x.double() * top_k, rtol=0.03)


@pytest.mark.parametrize("tokens", [0, 1, 60, 300, 3000])
def test_dispatch_over_peer_memory_brings_what_the_reference_brings(gpus, tokens):
    most, top_k, experts_total = max(300, tokens), 3, 8 * gpus.size
    mine = tokens * (gpus.rank + 1) // gpus.size  # ranks differ
    generator = torch.Generator().manual_seed(gpus.rank)
    experts = torch.randint(-1, experts_total + 1, (mine, top_k), generator=generator).to(gpus.device)
    payloads = [own(gpus, (mine, 72), torch.float8_e4m3fn), own(gpus, (mine, 3), torch.int32), experts]
    received = {}
    for backend in ("oneshot", "direct", "reference"):
        moe = MoeAlltoAll(gpus, most, top_k, experts_total, backend=backend)
        rows = moe.dispatch(experts, payloads, most)
        received[backend] = [row[rank, :count] for row in rows for rank, count in enumerate(moe.recv_counts.tolist())]
        result = moe.combine(torch.ones(gpus.size, most, 16, device=gpus.device), most)
        owners = (experts // 8).masked_fill((experts < 0) | (experts >= experts_total), -1)
        expected = torch.stack([(owners == rank).any(1) for rank in range(gpus.size)]).sum(0)
        assert result[:, 0].tolist() == expected.tolist()
    for one, other, expected in zip(*received.values(), strict=True):
        for ours in (one, other):
            assert torch.equal(ours.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8))


@pytest.mark.parametrize("backend", ["oneshot", "direct"])
def test_rounds_of_experts_with_skewed_ranks(gpus, backend):
    """Uneven tokens, another number each round, growing rows; a stand-in for the experts doubles what came."""
    most, top_k, experts_total = 64, 2, 2 * gpus.size
    moe = MoeAlltoAll(gpus, most, top_k, experts_total, backend=backend)
    shared, alone = random.Random(3), random.Random(gpus.rank)
    for call in range(60 if gpus.topology.shares_gpus else 400):
        hidden = 64 if call < 100 else 512
        rows = [shared.randrange(most + 1) for _ in range(gpus.size)]
        generator = torch.Generator(gpus.device).manual_seed(1000 * call + gpus.rank)
        x = torch.randn(rows[gpus.rank], hidden, generator=generator, device=gpus.device).bfloat16()
        experts = torch.randint(0, experts_total, (x.shape[0], top_k), generator=generator, device=gpus.device)
        if alone.random() < 0.1:
            time.sleep(alone.random() * 0.002)
        if alone.random() < 0.1:
            torch.cuda._sleep(alone.randrange(500_000))
        (came,) = moe.dispatch(experts, [x], most)
        result = moe.combine(2 * came, most)
        owners = (experts // 2).unsqueeze(-1) == torch.arange(gpus.size, device=gpus.device)
        expected = 2 * x.float() * owners.any(1).sum(-1, keepdim=True)
        assert torch.equal(result, expected.bfloat16()), f"round {call}"
        if call % 150 == 149:
            moe.close()
    gpus.check()
    moe.close()


def test_a_torch_group_with_nccl(gpus):
    if gpus.topology.shares_gpus:
        pytest.skip("NCCL refuses ranks that share a GPU")
    limit = datetime.timedelta(seconds=60)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) if gpus.rank == 0 else None
    port = gpus.transport.exchange_objects(store.port if store else 0)[0]
    store = store or dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group(
        "nccl", store=store, rank=gpus.rank, world_size=gpus.size, timeout=limit, device_id=gpus.device
    )
    try:
        with Communicator.from_torch(dist.group.WORLD, device=gpus.device, timeout=20.0) as comm:
            x = own(comm, (1000,), torch.float32)
            expected = in_rank_order(messages(comm.size, (1000,), torch.float32)).to(comm.device)
            for name in ("oneshot", "twoshot", "nccl", "reference", "auto"):
                assert_close(all_reduce(x, comm, backend=name), expected)
            assert_close(all_reduce(x.cpu(), comm), expected)  # carried by NCCL through the GPU
            torch.cuda.synchronize()
            comm.check()
    finally:
        gpus.barrier()
        dist.destroy_process_group()


def test_a_part_of_the_ranks(gpus):
    if gpus.size < 4:
        pytest.skip("needs four ranks")
    from mpi4py import MPI

    half = MPI.COMM_WORLD.Split(gpus.rank % 2, gpus.rank)
    with Communicator.from_mpi(half, device=gpus.device, timeout=20.0) as comm:
        result = all_reduce(torch.full((5000,), float(gpus.rank), device=gpus.device), comm, backend="oneshot")
        assert result.eq(sum(range(gpus.rank % 2, gpus.size, 2))).all()
        torch.cuda.synchronize()
        comm.check()
    half.Free()
