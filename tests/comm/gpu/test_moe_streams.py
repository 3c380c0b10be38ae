"""Expert parallelism on one GPU, where each rank is a stream: dispatch and combine against their definition."""

import pytest
import torch
from streams import COMBINES, DISPATCHES, Streams

from warploom.comm.problems.moe_all_to_all import DispatchTensors, MoeCombineProblem, MoeDispatchProblem, RowPlaces
from warploom.comm.routing import collect, rank_slots, scatter_to_ranks
from warploom.core.testing import assert_close, cases

pytestmark = pytest.mark.gpu
MOST, TOP_K, LOCAL_EXPERTS = 37, 3, 2
WHERE = {"device_type": "cuda", "arch": 90, "device_name": "a GPU"}


class Round:
    """Drawn tokens of all ranks, uneven, some without an expert, and what must become of them."""

    def __init__(self, size, hidden, dtype, seed):
        generator = torch.Generator("cuda").manual_seed(seed)
        self.size, self.hidden, self.dtype = size, hidden, dtype
        self.num_experts = LOCAL_EXPERTS * size
        tokens = [(seed * 7 + rank * 11) % (MOST + 1) for rank in range(size)]
        draw = {"generator": generator, "device": "cuda"}
        self.experts = [torch.randint(-1, self.num_experts + 1, (n, TOP_K), **draw) for n in tokens]
        # Rows of whole packets, of whole words and of odd bytes; some with the bits of an empty mailbox.
        self.payloads = [
            [
                torch.randn(n, hidden, **draw).to(dtype),
                torch.randint(-1, 2, (n, 5), dtype=torch.int32, **draw),
                torch.randint(0, 256, (n, 7), dtype=torch.uint8, **draw),
            ]
            for n in tokens
        ]
        self.results = [torch.randn(size, MOST, hidden, **draw).to(dtype) for _ in tokens]
        self.slots = [rank_slots(experts, self.num_experts, size) for experts in self.experts]
        self.counts = [torch.stack([(slots[:, rank] >= 0).sum() for slots in self.slots]) for rank in range(size)]

    def rows(self, rank, payload):
        """What `rank` gets of a payload, ``[size, MOST, ...]``."""
        sent = [
            scatter_to_ranks(own[payload], slots, MOST) for own, slots in zip(self.payloads, self.slots, strict=True)
        ]
        return torch.stack([parts[rank] for parts in sent])

    def sums(self, rank):
        return collect(torch.stack([results[rank] for results in self.results]), self.slots[rank])


def assert_rows(received, counts, expected):
    for rank, count in enumerate(counts.tolist()):
        ours, theirs = (x[rank, :count].contiguous().view(torch.uint8) for x in (received, expected))
        assert torch.equal(ours, theirs), f"rows of rank {rank}"


@pytest.mark.parametrize(
    *cases(size=[2, 3, 8], dispatch=list(DISPATCHES), combine=list(COMBINES), dtype=[torch.bfloat16, torch.float32])
)
def test_rounds_of_uneven_tokens(case):
    ranks = Streams(case.size)
    hidden = 264 if case.dtype == torch.bfloat16 else 136
    comms = [ranks.communicator(rank) for rank in range(case.size)]
    landings = [ranks.landings(MOST, 8 + 4 * hidden + 27 + 16), ranks.landings(MOST, 4 * hidden)]
    dispatch, combine = DISPATCHES[case.dispatch], COMBINES[case.combine]
    for seed in range(12):
        now = Round(case.size, hidden, case.dtype, seed)
        shared = {**WHERE, "size": case.size, "max_tokens": MOST, "lands": True}
        to_send = MoeDispatchProblem(
            **shared, row_bytes=0, top_k=TOP_K, num_experts=now.num_experts, payloads=len(now.payloads[0])
        )
        to_add = MoeCombineProblem(**shared, row_bytes=hidden * case.dtype.itemsize, dtype=case.dtype)
        received = [landings[0][rank].tensors(MOST, now.payloads[rank]) for rank in range(case.size)]
        counts = [torch.full((case.size,), -1, dtype=torch.int32, device="cuda") for _ in comms]
        slots = [torch.full((len(own), case.size), -9, dtype=torch.int32, device="cuda") for own in now.experts]
        outs = [torch.full((len(own), hidden), float("nan"), dtype=case.dtype, device="cuda") for own in now.experts]

        def sent(rank, now=now, counts=counts, slots=slots, received=received):
            return DispatchTensors(
                received[rank], counts[rank], slots[rank], now.experts[rank], now.payloads[rank], landings[0][rank]
            )

        def returned(rank, now=now, counts=counts, slots=slots, outs=outs):
            return outs[rank], now.results[rank], RowPlaces(slots[rank], counts[rank], landings[1][rank])

        # Kernels are loaded before any of them waits for another.
        senders = [dispatch.bind(to_send, comm, sent(rank)) for rank, comm in enumerate(comms)]
        adders = [combine.bind(to_add, comm, *returned(rank)) for rank, comm in enumerate(comms)]
        torch.cuda.synchronize()
        ranks.each([lambda r=r, run=run: run(comms[r], sent(r)) for r, run in enumerate(senders)])
        ranks.check()
        for rank in range(case.size):
            assert torch.equal(slots[rank], now.slots[rank])
            assert counts[rank].tolist() == now.counts[rank].tolist()
            for payload, rows in enumerate(received[rank]):
                assert_rows(rows, counts[rank], now.rows(rank, payload))
        ranks.each([lambda r=r, run=run: run(comms[r], *returned(r)) for r, run in enumerate(adders)])
        ranks.check()
        for rank in range(case.size):
            assert_close(outs[rank], now.sums(rank), rtol=0, atol=0)
