"""Ranks that are late, do not come, or call something else: ``mpirun -n N python -m pytest -m multigpu tests/comm``."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

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
from warploom.core.errors import CommunicationError

pytestmark = pytest.mark.multigpu(count=1)
HIDDEN = 256
DISAGREE = r"ranks disagree: this one called .+, rank \d called .+\. Outputs"


@dataclass(frozen=True)
class Kind:
    """A kind of call, in which every rank gives one more than its number.

    Attributes
    ----------
    operation : str
        What a report names it.
    prepare : callable
        Of a communicator: a function that makes a call.
    sums : bool
        Whether it returns sums, or what each rank gave: as many numbers of each, in rank order.
    kernels : int
        That one call of the function launches.
    """

    operation: str
    prepare: Callable[[Communicator], Callable[[], torch.Tensor]]
    sums: bool = True
    kernels: int = 1

    def is_right(self, comm, result):
        if self.sums:
            return bool(result.eq(comm.size * (comm.size + 1) / 2).all())
        return all(bool(part.eq(rank + 1).all()) for rank, part in enumerate(result.reshape(comm.size, -1)))

    def lacks_rank_0(self, comm, result):
        return bool((result if self.sums else result.reshape(comm.size, -1)[0]).isnan().all())


def given(comm, *shape):
    return torch.full(shape, comm.rank + 1.0, device=comm.device)


def fused(backend):
    def prepare(comm):
        # In two trips each thread has a packet of a chunk to sum, so that all wait for rank 0 itself.
        tokens = 64 * comm.size
        workspace = create_allreduce_fusion_workspace(
            comm, max_token_num=tokens, hidden_dim=HIDDEN, dtype=torch.float32, backend=backend
        )
        x, residual, gamma = given(comm, tokens, HIDDEN), torch.zeros(tokens, HIDDEN), torch.ones(HIDDEN)
        residual, gamma = residual.to(comm.device), gamma.to(comm.device)

        def call():
            sums = torch.zeros_like(x)
            pattern = AllReduceFusionPattern.kARResidualRMSNorm
            allreduce_fusion(x, workspace, pattern, residual_in=residual, rms_gamma=gamma, residual_out=sums)
            return sums

        return call

    return prepare


def experts(backend):
    """Every rank sends its tokens to every rank; returned is what came, NaN where nothing did."""

    def prepare(comm):
        most = 8
        moe = MoeAlltoAll(comm, most, comm.size, comm.size, backend=backend)
        ids = torch.arange(comm.size, dtype=torch.int32, device=comm.device).repeat(most, 1)
        places = torch.arange(most, device=comm.device)

        def call():
            (rows,) = moe.dispatch(ids, [given(comm, most, 64)], most)
            empty = places >= moe.recv_counts.unsqueeze(1)
            came = rows.masked_fill(empty.unsqueeze(-1), float("nan"))
            moe.combine(rows.clone(), most)
            return came

        return call

    return prepare


KINDS = {
    "all_reduce oneshot": Kind(
        "all_reduce (oneshot)", lambda comm: lambda: all_reduce(given(comm, 1000), comm, backend="oneshot")
    ),
    "all_reduce twoshot": Kind(
        "all_reduce (twoshot)", lambda comm: lambda: all_reduce(given(comm, 70_000), comm, backend="twoshot")
    ),
    "reduce_scatter": Kind(
        "reduce_scatter (oneshot)",
        lambda comm: lambda: reduce_scatter(given(comm, comm.size, 5000), comm, backend="oneshot"),
    ),
    "all_gather oneshot": Kind(
        "all_gather (oneshot)", lambda comm: lambda: all_gather(given(comm, 5000), comm, backend="oneshot"), sums=False
    ),
    "all_gather exchange": Kind(
        "all_to_all or all_gather (exchange)",
        lambda comm: lambda: all_gather(given(comm, 2_000_000), comm, backend="exchange"),
        sums=False,
    ),
    "all_to_all exchange": Kind(
        "all_to_all or all_gather (exchange)",
        lambda comm: lambda: all_to_all(given(comm, 50 * comm.size, 100), comm, backend="exchange"),
        sums=False,
    ),
    "fusion oneshot": Kind("allreduce_fusion (oneshot)", fused("fused_oneshot")),
    "fusion twoshot": Kind("allreduce_fusion (twoshot)", fused("fused_twoshot")),
    "moe direct": Kind("moe_dispatch (direct)", experts("direct"), sums=False, kernels=2),
    "moe oneshot": Kind("moe_dispatch (oneshot)", experts("oneshot"), sums=False, kernels=2),
}


@pytest.fixture(autouse=True, scope="module")
def healthy(gpus):
    """Tries each kind on `gpus`; done once where there is time, since a compilation takes longer than the timeouts here."""
    calls = {name: kind.prepare(gpus) for name, kind in KINDS.items()}

    def try_all():
        for name, call in calls.items():
            assert KINDS[name].is_right(gpus, call()), f"{name} of a communicator without faults"
        torch.cuda.synchronize()
        gpus.check()

    try_all()
    return try_all


@pytest.fixture
def make(gpus, healthy):
    """Makes a communicator that is dropped after the test, when all ranks are done with it; another one works on."""
    made = []

    def make_one(timeout):
        gpus.barrier()
        made.append(Communicator.from_mpi(device=gpus.device, timeout=timeout))
        return made[-1]

    yield make_one
    gpus.barrier()
    for comm in made:
        comm._release(wait=False)
    gpus.barrier()
    healthy()


def margin(comm):
    """Seconds that a report may be later than its time; kernels of ranks that share a GPU take turns."""
    return 12 if comm.topology.shares_gpus else 4


def report_of(comm):
    """What the kernels have told, once all are done."""
    torch.cuda.synchronize()
    with pytest.raises(CommunicationError) as caught:
        comm.check()
    return str(caught.value)


def assert_refuses(comm, report):
    """Every later call raises the same and writes nothing."""
    out = torch.full((100,), 5.0, device=comm.device)
    x, parts = torch.ones(100, device=comm.device), out.new_ones(comm.size, 100)
    for call in (
        lambda: all_reduce(x, comm, out=out, backend="oneshot"),
        lambda: reduce_scatter(parts, comm, out=out.view(1, 100), backend="oneshot"),
        lambda: all_gather(x[: 100 // comm.size], comm, out=out[: 100 // comm.size * comm.size], backend="exchange"),
    ):
        with pytest.raises(CommunicationError, match=re.escape(report)):
            call()
    torch.cuda.synchronize()
    assert out.eq(5).all()


def test_a_rank_that_is_late_is_waited_for(gpus, make):
    comm = make(3.0)
    for index, (name, kind) in enumerate(KINDS.items()):
        call, late = kind.prepare(comm), index % comm.size
        assert kind.is_right(comm, call()), name
        gpus.barrier()
        start = time.monotonic()
        if comm.rank == late:
            time.sleep(0.6)
        result = call()
        torch.cuda.synchronize()
        assert time.monotonic() - start > 0.4, f"{name}: nobody waited"
        comm.check()
        assert kind.is_right(comm, result), name


@pytest.mark.parametrize("name", list(KINDS))
def test_a_rank_that_does_not_come_is_named(gpus, make, name):
    comm, kind = make(1.0), KINDS[name]
    call = kind.prepare(comm)
    for _ in range(2):
        assert kind.is_right(comm, call())
    torch.cuda.synchronize()
    gpus.barrier()
    if comm.rank == 0:
        return  # to the end of `make`, where it waits for the others
    start = time.monotonic()
    result = call()
    report = report_of(comm)
    assert 0.5 < time.monotonic() - start < 1 + margin(comm)
    number = 2 * kind.kernels + 1
    start_of_report = f"rank {comm.rank}: {kind.operation}, call {number} over peer memory: waited for data of rank 0 "
    assert report.startswith(start_of_report), report
    assert re.search(r" (for 1 s|when rank [1-7] gave up)\. Outputs from this call on are not valid", report), report
    assert kind.lacks_rank_0(comm, result)
    assert_refuses(comm, report)


def test_calls_that_are_queued_behind_a_failure_end_at_once(gpus, make):
    comm = make(2.0)
    good = [
        KINDS[name] for name in ("all_reduce twoshot", "all_gather oneshot", "reduce_scatter", "all_gather exchange")
    ]
    calls = [kind.prepare(comm) for kind in good]
    for call in calls:
        call()
    torch.cuda.synchronize()
    gpus.barrier()
    results = [(kind, call()) for _ in range(2) for kind, call in zip(good, calls, strict=True)]
    number = 3 * len(good) + 1
    x, lost = torch.ones(1000, device=comm.device), torch.zeros(1000, device=comm.device)
    later = torch.full((5, comm.size, 1000), 5.0, device=comm.device)
    if comm.rank > 0:
        start = time.monotonic()
        all_reduce(x, comm, out=lost, backend="oneshot")  # rank 0 does not
        for out in later:
            all_reduce(x, comm, out=out[0], backend="oneshot")
            all_reduce(x, comm, out=out[0], backend="twoshot")
            all_gather(x, comm, out=out.view(-1), backend="oneshot")
            all_gather(x, comm, out=out.view(-1), backend="exchange")
        assert time.monotonic() - start < 1.5, "the calls were not queued before the failure"
        report = report_of(comm)
        assert time.monotonic() - start < 2 + margin(comm)
        assert lost.isnan().all()
        assert later.eq(5).all(), "a call after the failure has written"
    gpus.barrier()
    if comm.rank == 0:  # the others have given up: it learns that instead of waiting for them
        start = time.monotonic()
        all_reduce(x, comm, out=lost, backend="oneshot")
        report = report_of(comm)
        assert time.monotonic() - start < 1.5
        assert re.search(r"waited for data of rank (\d) \(stage 0\) when rank \1 gave up", report), report
        assert lost.eq(0).all()
    else:
        assert "waited for data of rank 0 (stage 0) " in report
    assert report.startswith(f"rank {comm.rank}: all_reduce (oneshot), call {number} over peer memory: ")
    assert all(kind.is_right(comm, result) for kind, result in results), "before the failure all was well"
    assert_refuses(comm, report)


def reduces_another_size(comm):
    all_reduce(torch.ones(5000 if comm.rank else 3000, device=comm.device), comm, backend="oneshot")


def reduces_another_type(comm):
    x = torch.ones(4096, device=comm.device, dtype=torch.float16 if comm.rank else torch.bfloat16)
    all_reduce(x, comm, backend="oneshot")


def gathers_instead(comm):
    (all_gather if comm.rank else all_reduce)(torch.ones(4096, device=comm.device), comm, backend="oneshot")


def exchanges_instead(comm):
    x = torch.ones(4096, device=comm.device)
    if comm.rank:
        all_gather(x, comm, backend="exchange")
    else:
        all_reduce(x, comm, backend="twoshot")


def fuses_other_tokens(comm):
    workspace = create_allreduce_fusion_workspace(comm, max_token_num=80, hidden_dim=HIDDEN, dtype=torch.float32)
    x = torch.ones(70 if comm.rank else 3, HIDDEN, device=comm.device)
    allreduce_fusion(
        x, workspace, AllReduceFusionPattern.kARResidualRMSNorm, residual_in=x, rms_gamma=x[0], backend="fused_oneshot"
    )


def dispatches_other_rows(comm, backend="direct"):
    moe = MoeAlltoAll(comm, 16, comm.size, comm.size, backend=backend)
    ids = torch.arange(comm.size, dtype=torch.int32, device=comm.device).repeat(4, 1)
    moe.dispatch(ids, [given(comm, 4, 64)], 12 if comm.rank else 8)


def dispatches_other_rows_in_packets(comm):
    dispatches_other_rows(comm, "oneshot")


def gathers_other_sizes(comm):
    all_gather(torch.ones(5000 if comm.rank else 3000, device=comm.device), comm, backend="exchange")


def expects_other_rows(comm, rows=10):
    """Every rank expects of each peer as many rows as it sends, and sends as many as nobody else."""
    counts = [rows * (comm.rank + 1)] * comm.size
    all_to_all(given(comm, sum(counts), 64), comm, counts, counts, backend="exchange")


def expects_other_rows_of_many(comm):
    """More than slots hold: senders wait for room."""
    expects_other_rows(comm, rows=50_000)


SAID_OF_PAIRS = (gathers_other_sizes, expects_other_rows, expects_other_rows_of_many)
DIFFER = (
    reduces_another_size,
    reduces_another_type,
    gathers_instead,
    exchanges_instead,
    fuses_other_tokens,
    dispatches_other_rows,
    dispatches_other_rows_in_packets,
    *SAID_OF_PAIRS,
)


@pytest.mark.parametrize("differ", DIFFER, ids=lambda differ: differ.__name__)
def test_ranks_that_call_different_things_learn_it(gpus, make, differ):
    comm = make(30.0)
    assert all_reduce(torch.ones(10, device=comm.device), comm, backend="oneshot").eq(comm.size).all()
    start = time.monotonic()
    differ(comm)
    report = report_of(comm)
    assert time.monotonic() - start < margin(comm), "the terms differ: no need to wait until the time is over"
    assert f"rank {comm.rank}: " in report
    assert ", call 2 over peer memory: " in report
    reports = gpus.transport.exchange_objects(report)
    said = [re.search(DISAGREE, one) is not None for one in reports]
    if differ in SAID_OF_PAIRS:
        # Few threads know a pair's terms: a rank may first see that another one, which said it, gave up.
        assert any(said), reports
        assert all(known or re.search(r"when rank \d gave up\.", one) for known, one in zip(said, reports, strict=True))
    else:
        assert all(said), reports
    assert_refuses(comm, report)
