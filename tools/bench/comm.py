"""Collectives against NCCL and torch symmetric memory: ``mpirun -n 8 python tools/bench comm``, one GPU a rank.

Calls go out of place, 20 to a CUDA graph, and a time is that of the slowest rank divided by 20. Torch's operators get
their inputs in registered (symmetric) memory; ours and NCCL's are ordinary tensors. The limit is what a GPU has to send, at
the rate at which the copy engines of all GPUs write to all others at once.
"""

from __future__ import annotations

import atexit
import functools
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

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
from warploom.core.bench import Benchmark, Peer, Target, Work, grid
from warploom.core.bench.ranks import current_ranks
from warploom.core.testing import assert_close, random_normal

KIB, MIB = 1 << 10, 1 << 20
CALLS = 20
# Mailboxes for 64 MiB in two shots, and for 16 MiB in one shot on 8 ranks.
WORKSPACE_BYTES = 256 * MIB + 4096


@functools.cache
def ranks_on(device: torch.device) -> SimpleNamespace:
    """The communicator of this run and, on GPUs, a torch group for the peers."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    comm = Communicator.from_mpi(device=device, timeout=30.0, workspace_bytes=WORKSPACE_BYTES)
    problem = "needs several GPUs" if device.type == "cpu" or comm.size == 1 else ""
    problem = problem or ("NCCL refuses ranks that share a GPU" if comm.topology.shares_gpus else "")
    if not problem:
        _start_torch_group(comm)
    atexit.register(_stop, comm)
    reaches = device.type == "cuda" and comm.size > 1 and not comm.topology.why_no_peer_memory
    rate = link_rate(comm) if reaches else 0.0
    if rate and comm.rank == 0:
        print(
            f"links: {rate:.0f} GB/s sent by each of {comm.size} GPUs to all others at once, by copy engines",
            flush=True,
        )
    return SimpleNamespace(comm=comm, no_group=problem, link_gbs=rate)


def link_rate(comm: Communicator) -> float:
    """GB/s that each GPU sends when all copy to all others: a ceiling of what kernels send."""
    from cuda.bindings import runtime

    part, rounds = 64 * MIB, 5
    buffer = comm.symmetric_buffer(comm.size * part)
    source = torch.empty(part, dtype=torch.uint8, device=comm.device)
    streams = [torch.cuda.Stream() for _ in range(comm.size)]
    best = 0.0
    for _ in range(3):
        torch.cuda.synchronize()
        comm.barrier()
        start, ends = torch.cuda.Event(enable_timing=True), []
        start.record()
        for hop in range(1, comm.size):
            stream, peer = streams[hop], (comm.rank + hop) % comm.size
            stream.wait_event(start)
            for _ in range(rounds):
                to, kind = buffer.pointers[peer] + comm.rank * part, runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
                runtime.cudaMemcpyAsync(to, source.data_ptr(), part, kind, stream.cuda_stream)
            ends.append(torch.cuda.Event(enable_timing=True))
            ends[-1].record(stream)
        torch.cuda.synchronize()
        slowest = max(start.elapsed_time(end) for end in ends)
        best = max(best, (comm.size - 1) * part * rounds / slowest / 1e6)
    buffer.close()
    return min(comm.transport.exchange_objects(best))


@functools.cache
def number_of_ranks() -> int:
    return current_ranks().size


def target(parameter: str, of_ranks: dict[int, dict[int, float]]) -> Target:
    """Microseconds that cases should take on so many H200, by a parameter of the case."""
    return Target("NVIDIA H200", lambda case: of_ranks.get(number_of_ranks(), {}).get(getattr(case, parameter)))


def sending(nbytes: Callable[[Any, int], float]) -> Callable[[Any], float]:
    """The least time to send ``nbytes(work, ranks)`` bytes from each GPU."""

    def least_us(work: Any) -> float:
        ranks = work.ranks
        return nbytes(work, ranks.comm.size) / ranks.link_gbs / 1e3 if ranks.link_gbs else 0.0

    return least_us


def _start_torch_group(comm: Communicator) -> None:
    limit = timedelta(seconds=60)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) if comm.rank == 0 else None
    port = comm.transport.exchange_objects(store.port if store else 0)[0]
    store = store or dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group(
        "nccl", store=store, rank=comm.rank, world_size=comm.size, timeout=limit, device_id=comm.device
    )


def _stop(comm: Communicator) -> None:
    comm.close()
    if dist.is_initialized():
        dist.destroy_process_group()


def no_nccl(work: Any) -> str:
    return work.ranks.no_group


def draw(comm: Communicator, shape: tuple[int, ...], seed: int) -> list[torch.Tensor]:
    """The bf16 messages of all ranks, drawn alike on each."""
    generator = torch.Generator(comm.device).manual_seed(seed)
    return [torch.randn(shape, generator=generator, device=comm.device, dtype=torch.bfloat16) for _ in range(comm.size)]


def total(messages: list[torch.Tensor]) -> torch.Tensor:
    """The sum in float32 and rank order, without a float32 copy of all messages at once."""
    result = messages[0].float()
    for message in messages[1:]:
        result += message
    return result


def check_sum(work: Any, actual: Any, expected: Any) -> None:
    """NCCL rounds to bf16 at every hop; ours is checked bit for bit in the tests."""
    rounding = 0.01 * work.ranks.comm.size
    assert_close(actual, expected, rtol=rounding, atol=rounding)


# All-reduce


def make_all_reduce(case: SimpleNamespace, device: torch.device) -> Work:
    ranks = ranks_on(device)
    messages = draw(ranks.comm, (case.nbytes // 2,), seed=1)
    x = messages[ranks.comm.rank]
    work = Work(ranks=ranks, x=x, out=torch.empty_like(x), expected=total(messages))
    if not ranks.no_group:
        work.for_nccl = x.clone()
        work.symmetric, work.no_symmetric = _symmetric(x)
    return work


def _symmetric(x: torch.Tensor) -> tuple[torch.Tensor | None, str]:
    """A copy in torch's symmetric memory, or why there is none."""
    try:
        import torch.distributed._symmetric_memory as symmetric_memory

        copy = symmetric_memory.empty(x.numel(), dtype=x.dtype, device=x.device)
        symmetric_memory.rendezvous(copy, dist.group.WORLD.group_name)
    except (ImportError, AttributeError, RuntimeError, TypeError) as error:
        return None, f"torch symmetric memory: {error}"
    return copy.copy_(x), ""


def no_symmetric_memory(work: Any) -> str:
    return work.ranks.no_group or work.no_symmetric


def nccl_all_reduce(work: Any) -> torch.Tensor:
    dist.all_reduce(work.for_nccl)  # in place, as NCCL is called in practice
    return work.for_nccl


def torch_one_shot(work: Any) -> torch.Tensor:
    return torch.ops.symm_mem.one_shot_all_reduce(work.symmetric, "sum", dist.group.WORLD.group_name)


def torch_two_shot(work: Any) -> torch.Tensor:
    return torch.ops.symm_mem.two_shot_all_reduce_(work.symmetric, "sum", dist.group.WORLD.group_name)


ALL_REDUCE = Benchmark(
    "all_reduce",
    cases=grid(
        nbytes=[8 * KIB, 16 * KIB, 64 * KIB, 128 * KIB, 256 * KIB, 512 * KIB, MIB, 2 * MIB, 4 * MIB, 16 * MIB, 64 * MIB]
    ),
    quick=grid(nbytes=[16 * KIB, MIB]),
    make=make_all_reduce,
    least_us=sending(lambda work, n: 2 * (n - 1) / n * work.x.nbytes),
    target=target(
        "nbytes",
        {
            4: {8 * KIB: 5.5, MIB: 12.5},
            8: {
                8 * KIB: 6.5,
                16 * KIB: 6.5,
                128 * KIB: 9,
                512 * KIB: 11.5,
                MIB: 13.5,
                4 * MIB: 29,
                16 * MIB: 100,
                64 * MIB: 365,
            },
        },
    ),
    ours=lambda work, backend: all_reduce(work.x, work.ranks.comm, out=work.out, backend=backend),
    reference=lambda work: work.expected,
    # One-shot before two-shot: the latter changes its input in place, and both have the same.
    peers=[
        Peer("nccl", nccl_all_reduce, no_nccl),
        Peer("torch one-shot", torch_one_shot, no_symmetric_memory),
        Peer("torch two-shot", torch_two_shot, no_symmetric_memory),
    ],
    check=check_sum,
    calls=CALLS,
    flush=False,
)

# All-gather, reduce-scatter and all-to-all


def make_moving(case: SimpleNamespace, device: torch.device) -> Work:
    ranks = ranks_on(device)
    size = ranks.comm.size
    messages = draw(ranks.comm, (size * (case.nbytes // 2 // size),), seed=2)
    return Work(ranks=ranks, x=messages[ranks.comm.rank], messages=messages)


def my_part(work: Any, x: torch.Tensor) -> torch.Tensor:
    return x.chunk(work.ranks.comm.size)[work.ranks.comm.rank]


def nccl_all_gather(work: Any) -> torch.Tensor:
    gathered = torch.empty(work.ranks.comm.size * work.x.numel(), dtype=work.x.dtype, device=work.x.device)
    dist.all_gather_into_tensor(gathered, work.x)
    return gathered


def nccl_all_to_all(work: Any) -> torch.Tensor:
    received = torch.empty_like(work.x)
    dist.all_to_all_single(received, work.x)
    return received


def nccl_reduce_scatter(work: Any) -> torch.Tensor:
    part = torch.empty_like(my_part(work, work.x))
    dist.reduce_scatter_tensor(part, work.x)
    return part


ALL_GATHER = Benchmark(
    "all_gather",
    cases=grid(nbytes=[16 * KIB, 128 * KIB, MIB, 4 * MIB, 16 * MIB]),
    make=make_moving,
    least_us=sending(lambda work, n: (n - 1) * work.x.nbytes),
    ours=lambda work, backend: all_gather(work.x, work.ranks.comm, backend=backend),
    reference=lambda work: torch.cat(work.messages),
    peers=[Peer("nccl", nccl_all_gather, no_nccl)],
    calls=CALLS,
    flush=False,
)
REDUCE_SCATTER = Benchmark(
    "reduce_scatter",
    cases=grid(nbytes=[16 * KIB, 128 * KIB, MIB, 4 * MIB, 16 * MIB]),
    make=make_moving,
    least_us=sending(lambda work, n: (n - 1) / n * work.x.nbytes),
    ours=lambda work, backend: reduce_scatter(work.x, work.ranks.comm, backend=backend),
    reference=lambda work: my_part(work, total(work.messages)),
    peers=[Peer("nccl", nccl_reduce_scatter, no_nccl)],
    check=check_sum,
    calls=CALLS,
    flush=False,
)

ALL_TO_ALL = Benchmark(
    "all_to_all",
    cases=grid(nbytes=[16 * KIB, 128 * KIB, MIB, 4 * MIB, 16 * MIB]),
    make=make_moving,
    least_us=sending(lambda work, n: (n - 1) / n * work.x.nbytes),
    ours=lambda work, backend: all_to_all(work.x, work.ranks.comm, backend=backend),
    reference=lambda work: torch.cat([my_part(work, message) for message in work.messages]),
    peers=[Peer("nccl", nccl_all_to_all, no_nccl)],
    calls=CALLS,
    flush=False,
)

# All-reduce + residual + RMSNorm


def make_fusion(case: SimpleNamespace, device: torch.device) -> Work:
    ranks = ranks_on(device)
    shape = (case.tokens, case.hidden)
    messages = draw(ranks.comm, shape, seed=3)
    residual = random_normal(shape, torch.bfloat16, seed=4, device=device)
    gamma = random_normal((case.hidden,), torch.bfloat16, seed=5, device=device)
    workspace = create_allreduce_fusion_workspace(
        ranks.comm, max_token_num=case.tokens, hidden_dim=case.hidden, dtype=torch.bfloat16
    )
    x = messages[ranks.comm.rank]
    added = total(messages).to(torch.bfloat16) + residual
    return Work(
        ranks=ranks, x=x, residual=residual, gamma=gamma, workspace=workspace, out=torch.empty_like(x),
        residual_out=torch.empty_like(x), for_nccl=x.clone(),
        expected=torch.nn.functional.rms_norm(added.float(), (case.hidden,), gamma.float(), 1e-6),
    )  # fmt: skip


def our_fusion(work: Any, backend: str) -> torch.Tensor:
    return allreduce_fusion(
        work.x, work.workspace, AllReduceFusionPattern.kARResidualRMSNorm, residual_in=work.residual,
        residual_out=work.residual_out, norm_out=work.out, rms_gamma=work.gamma, backend=backend,
    )  # fmt: skip


def nccl_fusion(work: Any) -> torch.Tensor:
    dist.all_reduce(work.for_nccl)
    torch.add(work.for_nccl, work.residual, out=work.residual_out)
    return torch.nn.functional.rms_norm(work.residual_out, work.gamma.shape, work.gamma, 1e-6)


FUSION = Benchmark(
    "all_reduce + residual + rms_norm",
    operator="allreduce_fusion",
    cases=grid(tokens=[1, 4, 16, 64, 128, 256, 1024], hidden=[8192]),
    make=make_fusion,
    least_us=sending(lambda work, n: 2 * (n - 1) / n * work.x.nbytes),
    target=target("tokens", {8: {1: 8, 16: 9, 128: 20, 1024: 115}}),
    ours=our_fusion,
    reference=lambda work: work.expected,
    peers=[Peer("nccl + torch", nccl_fusion, no_nccl)],
    check=check_sum,
    calls=CALLS,
    flush=False,
)

# Expert-parallel dispatch and combine

HIDDEN, TOP_K, EXPERTS = 7168, 8, 256


def make_moe(case: SimpleNamespace, device: torch.device) -> Work:
    """fp8 hidden states with a float32 scale for 128 columns go out, bf16 results come back."""
    ranks = ranks_on(device)
    comm = ranks.comm
    generator = torch.Generator().manual_seed(comm.rank)
    experts = torch.rand(case.max_tokens, EXPERTS, generator=generator).argsort(1)[:, :TOP_K].to(torch.int32).to(device)
    hidden = random_normal((case.max_tokens, HIDDEN), torch.float8_e4m3fn, seed=comm.rank, device=device)
    scales = torch.rand(case.max_tokens, HIDDEN // 128, device=device)
    results = random_normal((comm.size, case.max_tokens, HIDDEN), torch.bfloat16, seed=6, device=device)
    work = Work(ranks=ranks, experts=experts, payloads=[hidden, scales, experts], results=results)
    work.moe = functools.cache(lambda backend: MoeAlltoAll(comm, case.max_tokens, TOP_K, EXPERTS, backend=backend))
    work.slots = {}
    work.dense = torch.empty_like(results)
    return work


def ranks_of_tokens(work: Any) -> torch.Tensor:
    """Whether a token goes to a rank, ``[tokens, size]``."""
    size = work.ranks.comm.size
    owner = work.experts.long() // (EXPERTS // size)
    return torch.zeros(owner.shape[0], size, dtype=torch.bool, device=owner.device).scatter(1, owner, True)


def rows_sent(work: Any) -> int:
    """Rows that this rank's tokens send to others, and get back."""
    chosen = ranks_of_tokens(work)
    chosen[:, work.ranks.comm.rank] = False
    return int(chosen.sum())


def our_dispatch(work: Any, backend: str) -> list[torch.Tensor]:
    moe = work.moe(backend)
    received = moe.dispatch(work.experts, work.payloads, work.experts.shape[0])
    moe._slots = None  # without its combine, as only a benchmark may: every call brings the same rows
    return received


def dispatched(work: Any) -> list[torch.Tensor]:
    """What arrives by the reference; rows past the counts are not compared."""
    received = our_dispatch(work, "reference")
    work.counts = work.moe("reference").recv_counts
    return received


def check_rows(work: Any, actual: Any, expected: Any) -> None:
    for ours, theirs in zip(actual, expected, strict=True):
        for rank, count in enumerate(work.counts.tolist()):
            assert torch.equal(ours[rank, :count].view(torch.uint8), theirs[rank, :count].view(torch.uint8)), rank


def our_combine(work: Any, backend: str) -> torch.Tensor:
    moe = work.moe(backend)
    if backend not in work.slots:
        moe.dispatch(work.experts, work.payloads, work.experts.shape[0])
        work.slots[backend] = moe._slots
    moe._slots = work.slots[backend]  # one dispatch for all calls, as only a benchmark may
    return moe.combine(work.results, work.experts.shape[0])


def combined(work: Any) -> torch.Tensor:
    """Every rank returns the same made-up results, so a token's sum is known from its ranks and its place on each."""
    comm = work.ranks.comm
    chosen = ranks_of_tokens(work)
    place = chosen.cumsum(0) - 1
    rows = work.results[comm.rank].float()  # what each rank holds for this one
    return sum(torch.where(chosen[:, r, None], rows[place[:, r].clamp_min(0)], 0.0) for r in range(comm.size))


def dense_all_to_all(work: Any) -> torch.Tensor:
    dist.all_to_all_single(work.dense, work.results)
    return work.dense


DENSE = Peer("nccl, dense bf16", dense_all_to_all, no_nccl, verified=False)
MOE_DISPATCH = Benchmark(
    "moe dispatch",
    operator="moe_dispatch",
    cases=grid(max_tokens=[1, 16, 64, 128, 256, 512, 4096]),
    make=make_moe,
    least_us=sending(lambda work, n: rows_sent(work) * sum(x[0].nbytes for x in work.payloads)),
    target=target("max_tokens", {8: {128: 30, 4096: 485}}),  # 4096: 290 GB/s, each peer gets 66 % of the tokens
    ours=our_dispatch,
    reference=dispatched,
    peers=[DENSE],
    check=check_rows,
    calls=CALLS,
    flush=False,
)
MOE_COMBINE = Benchmark(
    "moe combine",
    operator="moe_combine",
    cases=grid(max_tokens=[1, 16, 64, 128, 256, 512, 4096]),
    make=make_moe,
    least_us=sending(lambda work, n: rows_sent(work) * HIDDEN * 2),
    target=target("max_tokens", {8: {128: 45, 4096: 938}}),
    ours=our_combine,
    reference=combined,
    peers=[DENSE],
    check=check_sum,
    calls=CALLS,
    flush=False,
)

BENCHMARKS = [ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, ALL_TO_ALL, FUSION, MOE_DISPATCH, MOE_COMBINE]
