"""Expert-parallel dispatch and combine on CPU tensors."""

import pytest
import torch
from comm_oracle import FLOATS, message

from warploom.comm import MoeAlltoAll
from warploom.core.errors import ArgumentError, CommunicationError, PlanError
from warploom.core.testing import assert_close, cases, poison_like

pytestmark = pytest.mark.mpi
BACKENDS = ["auto", "mpi", "reference"]
LOCAL_EXPERTS, TOP_K, MAX_TOKENS, HIDDEN = 3, 3, 16, 8


def tokens_of(rank, seed):
    """Ragged, rank 0 without any token for some seeds."""
    generator = torch.Generator().manual_seed(100 * seed + rank)
    return int(torch.randint(0, MAX_TOKENS + 1, (), generator=generator)) if seed % 3 or rank else 0


def experts_of(rank, size, seed):
    """``[tokens, top_k]`` distinct experts; some tokens have none, and seed 1 leaves all ranks but the last idle."""
    generator = torch.Generator().manual_seed(200 * seed + rank)
    total = LOCAL_EXPERTS * size
    tokens = tokens_of(rank, seed)
    first = total - LOCAL_EXPERTS if seed == 1 else 0
    scores = torch.rand(tokens, total - first, generator=generator)
    experts = scores.argsort(1)[:, :TOP_K] + first
    experts[::5] = -1
    return experts.to(torch.int32)


def sent_to(experts, rank):
    """Indices of the tokens with an expert of `rank`, in order."""
    return ((experts >= 0) & (experts // LOCAL_EXPERTS == rank)).any(1).nonzero().flatten()


def hidden_of(rank, size, seed, dtype):
    return message(rank, (tokens_of(rank, seed), HIDDEN), dtype, seed)


def local_experts(world, hidden, ids):
    """A stand-in for the experts: each multiplies by its number + 1; results of this rank's experts are added."""
    first = world.rank * LOCAL_EXPERTS
    mine = (ids >= first) & (ids < first + LOCAL_EXPERTS)
    factor = torch.where(mine, ids + 1, 0).sum(-1, keepdim=True)
    return (hidden.float() * factor).to(hidden.dtype)


@pytest.mark.parametrize(*cases(dtype=FLOATS, seed=[0, 1, 2, 3], backend=BACKENDS))
def test_dispatch_experts_combine(world, case):
    experts = experts_of(world.rank, world.size, case.seed)
    hidden = hidden_of(world.rank, world.size, case.seed, case.dtype)
    scales = hidden.float().abs().amax(-1, keepdim=True)
    moe = MoeAlltoAll(world, MAX_TOKENS, TOP_K, LOCAL_EXPERTS * world.size, backend=case.backend)
    for _ in range(2):  # the object serves layer after layer
        rows, ids, got_scales = moe.dispatch(experts, [hidden, experts, scales], MAX_TOKENS, -1, 1)
        assert rows.shape == (world.size, MAX_TOKENS, HIDDEN)
        for rank in range(world.size):
            theirs = experts_of(rank, world.size, case.seed)
            chosen = sent_to(theirs, world.rank)
            assert int(moe.recv_counts[rank]) == len(chosen)
            expected = hidden_of(rank, world.size, case.seed, case.dtype)[chosen]
            assert torch.equal(rows[rank, : len(chosen)], expected)
            assert torch.equal(got_scales[rank, : len(chosen)], expected.float().abs().amax(-1, keepdim=True))
            local = theirs[chosen] // LOCAL_EXPERTS == world.rank
            assert torch.equal(ids[rank, : len(chosen)], torch.where(local, theirs[chosen], -1))
            assert ids[rank, len(chosen) :].eq(-1).all()
        out = poison_like(hidden)
        assert moe.combine(local_experts(world, rows, ids), MAX_TOKENS, out=out) is out
        factor = torch.where(experts >= 0, experts + 1, 0).sum(-1, keepdim=True)
        assert_close(out, hidden.double() * factor, dtype=case.dtype)


def test_payloads_of_any_dtype_and_shape(world):
    experts = torch.zeros(2, 1, dtype=torch.int64)
    moe = MoeAlltoAll(world, 4, 1, world.size)
    payloads = [
        message(world.rank, (2, 16), torch.float8_e4m3fn),
        torch.full((2,), world.rank),
        torch.ones(2, 3, 2),
        torch.zeros(2, 0),
    ]
    received = moe.dispatch(experts, payloads, 2)
    assert [tuple(r.shape) for r in received] == [
        (world.size, 2, 16),
        (world.size, 2),
        (world.size, 2, 3, 2),
        (world.size, 2, 0),
    ]
    if world.rank == 0:
        for rank in range(world.size):
            expected = message(rank, (2, 16), torch.float8_e4m3fn)
            assert torch.equal(received[0][rank].view(torch.uint8), expected.view(torch.uint8))
            assert received[1][rank].tolist() == [rank, rank]
    else:
        assert moe.recv_counts.eq(0).all()
    assert moe.combine(torch.ones(world.size, 2, 5), 2).eq(1).all()


def test_no_tokens_at_all(world):
    moe = MoeAlltoAll(world, 4, 2, 2 * world.size)
    (rows,) = moe.dispatch(torch.zeros(0, 2, dtype=torch.int32), [torch.zeros(0, 8)], 0)
    assert rows.shape == (world.size, 0, 8)
    assert moe.combine(rows, 0).shape == (0, 8)


def test_wrong_order(world):
    moe = MoeAlltoAll(world, 4, 1, world.size)
    with pytest.raises(PlanError, match="call dispatch first"):
        moe.combine(torch.zeros(world.size, 1, 1), 1)
    moe.dispatch(torch.zeros(1, 1, dtype=torch.int32), [torch.zeros(1, 2)], 1)
    with pytest.raises(PlanError, match="not combined yet"):
        moe.dispatch(torch.zeros(1, 1, dtype=torch.int32), [torch.zeros(1, 2)], 1)
    moe.combine(torch.zeros(world.size, 1, 2), 1)


def test_wrong_arguments(world):
    for change in ({"num_experts": 0}, {"top_k": 99}, {"max_num_tokens": -1}, {"comm": None}):
        with pytest.raises(ArgumentError, match=next(iter(change))):
            MoeAlltoAll(**{"comm": world, "max_num_tokens": 4, "top_k": 1, "num_experts": world.size, **change})
    if world.size > 1:
        with pytest.raises(ArgumentError, match="a multiple of the"):
            MoeAlltoAll(world, 4, 1, world.size + 1)
    moe = MoeAlltoAll(world, 4, 1, world.size)
    experts, hidden = torch.zeros(2, 1, dtype=torch.int32), torch.zeros(2, 8)
    for arguments, text in (
        ((experts.float(), [hidden], 2), "token_selected_experts"),
        ((torch.zeros(2, 2, dtype=torch.int32), [hidden], 2), "token_selected_experts"),
        ((experts, [hidden[:1]], 2), r"input_payloads\[0\]"),
        ((experts, [hidden], 1), "runtime_max_tokens_per_rank"),
        ((experts, [hidden], 5), "max_num_tokens = 4"),
        ((experts, [hidden], 2, -1), "`expert_id_payload_index` must be the index of one of the 1 payloads"),
        ((experts, [hidden], 2, -1, 0), "`expert_id_payload_index` must be that of int32 or int64 ids"),
    ):
        with pytest.raises(ArgumentError, match=text):
            moe.dispatch(*arguments)
    moe.dispatch(experts, [hidden], 2)
    with pytest.raises(ArgumentError, match="`payload`"):
        moe.combine(torch.zeros(world.size, 3, 8), 2)
    moe.combine(torch.zeros(world.size, 2, 8), 2)


def test_different_limits_raise_on_every_rank(world):
    if world.size == 1:
        pytest.skip("one rank agrees with itself")
    moe = MoeAlltoAll(world, 4, 1, world.size)
    with pytest.raises(CommunicationError, match="ranks disagree"):
        moe.dispatch(torch.zeros(1, 1, dtype=torch.int32), [torch.zeros(1, 2)], 1 + world.rank % 2)
