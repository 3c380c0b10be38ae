"""The verification kernel: tokens, counts and validity of the reference, exactly."""

import math

import pytest
import sampling_oracle as oracle
import torch

from warploom.core.testing import cases, random_normal
from warploom.sampling import chain_speculative_sampling
from warploom.sampling.backends.cuda import speculative as launcher
from warploom.sampling.speculative import CHAIN_SPECULATIVE

pytestmark = pytest.mark.gpu(min_arch=80)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
INF, NAN = math.inf, math.nan


def problem(batch, n, vocab, dtype=torch.float32, closeness=0.8):
    """Models that agree more or less, and tokens drawn from the draft."""
    target = random_normal((batch, n + 1, vocab), scale=2.0, device="cuda")
    noise = random_normal((batch, n, vocab), seed=1, device="cuda")
    draft = torch.softmax(target[:, :n] + noise * (1 - closeness), -1)
    ids = torch.argmax(draft / torch.empty_like(draft).exponential_(), -1)
    return draft.to(dtype), ids, torch.softmax(target, -1).to(dtype)


def check(draft, ids, target, **options):
    options = {"seed": 3, "offset": 5, "return_valid": True, **options}
    got = chain_speculative_sampling(draft, ids, target, **options, backend="cuda")
    want = chain_speculative_sampling(draft, ids, target, **options, backend="reference")
    for mine, reference in zip(got, want, strict=True):
        assert torch.equal(mine, reference)
    return got


@pytest.mark.parametrize(*cases(vocab=[2, 33, 1001, 32000, 128256], n=[0, 1, 3, 7], dtype=DTYPES))
def test_random_problems(case):
    batch = 6 if case.vocab > 50_000 else 20
    arguments = problem(batch, case.n, case.vocab, case.dtype)
    check(*arguments)
    check(*arguments, seed=torch.arange(batch, device="cuda"))


@pytest.mark.parametrize("closeness", [0.0, 0.5, 1.0])
def test_long_chains_and_large_vocabularies(closeness):
    check(*problem(5, 40, 3000, closeness=closeness))
    check(*problem(5, 300, 50, closeness=closeness))
    check(*problem(1, 1, 1_000_000, closeness=closeness))


def test_odd_rows():
    draft, ids, target = problem(12, 3, 2000, closeness=0.0)
    ids[0, 0], ids[1, 1], ids[2, 2] = -1, 2000, -7
    draft[3] = target[3, :3]
    draft[4], target[4] = 0.0, 0.0
    target[5, :, 7] = NAN
    draft[6, :, 7] = NAN
    target[7, :, 7] = INF
    draft[8, :, 7] = INF
    target[9] = -target[9]
    target[10] = 0.0
    target[10, :, 5] = 1.0
    draft[11] = draft[11] * 2
    got = check(draft, ids, target)
    assert not bool(got[-1][4])
    for seed in range(8):
        check(draft, ids, target, seed=seed)


def test_a_token_that_fails_by_rounding_alone_draws_from_the_target():
    probs = torch.tensor([0.5, 0.0, 0.5], device="cuda").expand(64, 2, 3).contiguous()
    draft = probs[:, :1].clone()
    ids = torch.ones(64, 1, dtype=torch.int32, device="cuda")  # of weight 0 in both
    tokens, _, emitted, valid = check(draft, ids, probs)
    assert bool(valid.all())
    assert int(emitted.sum()) == 0
    assert set(tokens[:, 0].tolist()) == {0, 2}


@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_inputs_and_given_outputs(dtype):
    draft, ids, target = problem(7, 4, 1003, dtype)
    apart = (
        draft.transpose(0, 2).contiguous().transpose(0, 2),
        ids.t().contiguous().t().int(),
        torch.nn.functional.pad(target, (0, 5))[..., :1003],
    )
    for mine, reference in zip(check(*apart), check(draft, ids, target), strict=True):
        assert torch.equal(mine, reference)
    accepted, emitted = (
        torch.full((7,), 10, dtype=torch.int32, device="cuda"),
        torch.zeros(14, device="cuda").int()[::2],
    )
    out = torch.empty(5, 7, dtype=torch.int32, device="cuda").t()
    arguments = {"maybe_output_accepted_token_num": accepted, "maybe_output_emitted_draft_token_num": emitted}
    chain_speculative_sampling(draft, ids, target, **arguments, seed=3, offset=5, out=out, backend="cuda")
    want = check(draft, ids, target)
    assert torch.equal(out, want[0])
    assert torch.equal(accepted, want[1] + 10)
    assert torch.equal(emitted, want[2])


@pytest.mark.parametrize("parts", [1, 2, 8, 16])
def test_every_launch_shape(parts, monkeypatch):
    if parts > 1 and torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("clusters need compute capability 9")
    monkeypatch.setattr(launcher, "stream_parts", lambda *_: parts)
    for vocab in (3, 5000, 40_003):
        check(*problem(9, 2, vocab))


def test_tokens_follow_the_target():
    vocab, draws = 6, 40_000
    draft = torch.tensor([0.5, 0.1, 0.1, 0.1, 0.2, 0.0], device="cuda").expand(draws, 1, vocab)
    target = torch.tensor([[0.1, 0.3, 0.0, 0.2, 0.25, 0.15], [1 / 6] * 6], device="cuda").expand(draws, 2, vocab)
    ids = torch.multinomial(draft[:, 0], 1).int()
    tokens, _, emitted = chain_speculative_sampling(draft, ids, target, seed=2, backend="cuda")
    assert oracle.chi_square_fits(oracle.histogram(tokens[:, 0], vocab), target[0, 0].cpu())
    assert oracle.chi_square_fits(oracle.histogram(tokens[emitted == 1, 1], vocab), target[0, 1].cpu())


def test_graph_replays_draw_anew_and_wait_for_nothing():
    arguments = problem(16, 3, 5000)
    offset = torch.zeros(1, dtype=torch.int64, device="cuda")
    chain_speculative_sampling(*arguments, seed=3, offset=offset)
    assert CHAIN_SPECULATIVE.last.name == "cuda"
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            tokens, *_ = chain_speculative_sampling(*arguments, seed=3, offset=offset)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    offset.zero_()
    for step in range(3):
        graph.replay()
        assert torch.equal(tokens, check(*arguments, offset=step)[0])
        assert offset.tolist() == [step + 1]
