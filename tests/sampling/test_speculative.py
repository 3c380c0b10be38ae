"""Speculative verification: token by token against a loop in Python, and in distribution."""

import math

import pytest
import sampling_oracle as oracle
import torch

from warploom.core.errors import ArgumentError
from warploom.core.testing import random_normal
from warploom.sampling import chain_speculative_sampling, softmax
from warploom.sampling.backends.reference.philox import random_words, uniform
from warploom.sampling.randomness import ACCEPT_DRAW, RandomState

NAN = math.nan


def problem(batch, n, vocab, seed=0, closeness=1.0):
    """Draft and target models that agree more or less, and tokens drawn from the draft."""
    target = random_normal((batch, n + 1, vocab), seed=seed)
    draft = target[:, :n] + random_normal((batch, n, vocab), seed=seed + 1) * (1 - closeness)
    draft_probs = softmax(draft.reshape(-1, vocab)).reshape(batch, n, vocab)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.multinomial(draft_probs.reshape(-1, vocab), 1, generator=generator) if batch * n else torch.zeros(0)
    return draft_probs, ids.reshape(batch, n).int(), softmax(target.reshape(-1, vocab)).reshape(batch, n + 1, vocab)


def by_hand(draft_probs, ids, target_probs, seed):
    """The definition, one request after the other."""
    batch, n, vocab = draft_probs.shape
    random = RandomState(None, seed, None, 0)
    u = uniform(random_words(random, batch, n, ids.device, first_draw=ACCEPT_DRAW))
    tokens, accepted, emitted = [], [], []
    for b in range(batch):
        passes = []
        for i in range(n):
            x = int(ids[b, i])
            passes.append(0 <= x < vocab and bool(u[b, i] * draft_probs[b, i, x] < target_probs[b, i, x]))
        length = passes.index(False) if False in passes else n
        weights = target_probs[b, length].double()
        if length < n and 0 <= int(ids[b, length]) < vocab:
            weights = (target_probs[b, length] - draft_probs[b, length]).clamp(min=0).double()
        last = oracle.race(weights.tolist(), b, seed)
        tokens.append([*ids[b, :length].tolist(), last, *[-1] * (n - length)])
        accepted.append(sum(passes))
        emitted.append(length)
    return tokens, accepted, emitted


@pytest.mark.parametrize("closeness", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("n", [0, 1, 4])
def test_matches_the_definition(n, closeness):
    arguments = problem(30, n, 20, closeness=closeness)
    tokens, accepted, emitted, valid = chain_speculative_sampling(*arguments, seed=3, return_valid=True)
    assert (tokens.tolist(), accepted.tolist(), emitted.tolist()) == by_hand(*arguments, seed=3)
    assert tokens.dtype == accepted.dtype == emitted.dtype == torch.int32
    assert bool(valid.all())
    if closeness == 1.0:  # equal models accept everything
        assert emitted.tolist() == [n] * 30


def test_first_token_is_distributed_as_the_target_says():
    vocab, draws = 6, 20_000
    draft = torch.tensor([0.5, 0.1, 0.1, 0.1, 0.2, 0.0]).expand(draws, 1, vocab)
    target = torch.tensor([[0.1, 0.3, 0.0, 0.2, 0.25, 0.15], [1 / 6] * 6]).expand(draws, 2, vocab)
    ids = torch.multinomial(draft[:, 0], 1, generator=torch.Generator().manual_seed(1)).int()
    tokens, _, emitted = chain_speculative_sampling(draft, ids, target, seed=2)
    assert oracle.chi_square_fits(oracle.histogram(tokens[:, 0], vocab), target[0, 0])
    bonus = tokens[emitted == 1, 1]
    assert oracle.chi_square_fits(oracle.histogram(bonus, vocab), target[0, 1])
    rate = float(torch.minimum(draft[0, 0], target[0, 0]).sum())
    assert abs(float(emitted.float().mean()) - rate) < 5 * (rate * (1 - rate) / draws) ** 0.5


def test_ids_outside_the_vocabulary_end_the_chain_with_a_token_of_the_target():
    draft, ids, target = problem(3, 3, 8)
    ids[0, 1], ids[1, 0], ids[2, 2] = -1, 8, -1
    tokens, accepted, emitted = chain_speculative_sampling(draft, ids, target, seed=1)
    assert emitted.tolist() == [1, 0, 2]
    assert accepted.tolist() == [2, 2, 2]
    assert (tokens.tolist(), accepted.tolist(), emitted.tolist()) == by_hand(draft, ids, target, seed=1)


def test_counts_are_added_to_the_given_tensors_and_out_is_used():
    arguments = problem(5, 2, 10, closeness=0.5)
    fresh = chain_speculative_sampling(*arguments, seed=1)
    accepted, emitted = torch.full((5,), 10, dtype=torch.int32), torch.full((5,), 20, dtype=torch.int32)
    out = torch.empty(5, 3, dtype=torch.int32)
    result = chain_speculative_sampling(*arguments, accepted, emitted, seed=1, out=out)
    assert result[0] is out
    assert result[1] is accepted
    assert torch.equal(out, fresh[0])
    assert torch.equal(accepted, fresh[1] + 10)
    assert torch.equal(emitted, fresh[2] + 20)


def test_bad_distributions():
    draft = torch.full((3, 1, 4), 0.25)
    target = torch.full((3, 2, 4), 0.25)
    target[0] = NAN
    target[1] = 0.0
    ids = torch.zeros(3, 1, dtype=torch.int64)
    tokens, _, emitted, valid = chain_speculative_sampling(draft, ids, target, seed=1, return_valid=True)
    assert valid.tolist() == [False, False, True]
    assert tokens[:2].tolist() == [[0, -1], [0, -1]]
    assert emitted.tolist() == [0, 0, 1]
    with pytest.raises(ArgumentError, match="target_probs"):
        chain_speculative_sampling(draft, ids, target, check_nan=True)


def test_rejection_of_an_equal_model_draws_from_the_target():
    """u * draft < target can fail for equal probabilities only if both are 0; the empty difference must not matter."""
    probs = torch.tensor([[[0.0, 1.0]]])
    target = torch.tensor([[[0.0, 1.0], [0.5, 0.5]]])
    tokens, _, _, valid = chain_speculative_sampling(probs, torch.tensor([[0]]), target, return_valid=True)
    assert tokens.tolist() == [[1, -1]]
    assert valid.tolist() == [True]


def test_requests_do_not_depend_on_the_batch_and_offsets_advance():
    draft, ids, target = problem(6, 3, 30, closeness=0.5)
    seeds, offset = torch.arange(6), torch.zeros(6, dtype=torch.int64)
    whole = chain_speculative_sampling(draft, ids, target, seed=seeds, offset=offset)[0]
    assert offset.tolist() == [1] * 6
    some = torch.tensor([4, 1])
    part = chain_speculative_sampling(draft[some], ids[some], target[some], seed=seeds[some])[0]
    assert torch.equal(part, whole[some])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"draft_probs": torch.zeros(2, 2, 4).double()}, "float32"),
        ({"draft_token_ids": torch.zeros(2, 3, dtype=torch.int32)}, "n = 2"),
        ({"draft_token_ids": torch.zeros(2, 2)}, "int32"),
        ({"target_probs": torch.zeros(2, 2, 4)}, "3 positions"),
        ({"target_probs": torch.zeros(2, 3, 5)}, "vocab = 4"),
        ({"target_probs": torch.zeros(2, 3, 4).half()}, "float32"),
        ({"maybe_output_accepted_token_num": torch.zeros(3, dtype=torch.int32)}, "accepted_token_num"),
        ({"out": torch.zeros(2, 2, dtype=torch.int32)}, "`out`"),
        ({"backend": "no"}, "reference"),
    ],
)
def test_wrong_arguments(change, message):
    arguments = {
        "draft_probs": torch.full((2, 2, 4), 0.25),
        "draft_token_ids": torch.zeros(2, 2, dtype=torch.int32),
        "target_probs": torch.full((2, 3, 4), 0.25),
    }
    with pytest.raises(ArgumentError, match=message):
        chain_speculative_sampling(**{**arguments, **change})


def test_empty_batch():
    tokens, accepted, emitted = chain_speculative_sampling(*problem(0, 2, 5))
    assert (tokens.shape, accepted.shape, emitted.shape) == ((0, 3), (0,), (0,))
