"""Drawn tokens: their distribution, what they depend on, and what odd rows give."""

import math
import sys

import pytest
import sampling_oracle as oracle
import torch
from hypothesis import given
from hypothesis import strategies as st

from warploom import sampling
from warploom.core.errors import ArgumentError
from warploom.core.settings import settings
from warploom.core.testing import random_normal

INF, NAN = math.inf, math.nan
DRAWS = 20_000
PROBS = {
    "random": [0.13, 0.02, 0.3, 0.05, 0.0, 0.21, 0.07, 0.22],
    "peaked": [0.96, 0.01, 0.01, 0.005, 0.005, 0.01, 0.0, 0.0],
    "uniform": [0.125] * 8,
    "tied": [0.25, 0.125, 0.25, 0.0625, 0.0625, 0.125, 0.0625, 0.0625],
}


def many(function, row, *arguments, **options):
    """Counts of tokens over many draws from one row."""
    indices = torch.zeros(DRAWS, dtype=torch.int32)
    tokens, valid = function(torch.tensor([row]), *arguments, indices=indices, return_valid=True, **options)
    assert tokens.dtype == torch.int32
    assert bool(valid.all())
    return oracle.histogram(tokens, len(row))


def kept(row, top_k=0, top_p=1.0, min_p=0.0, joint=False):
    """The distribution that a draw must follow."""
    by_k = oracle.kept_by_top_k(row, top_k)
    base = row if joint else oracle.restrict(row, by_k)
    return oracle.restrict(row, by_k & oracle.kept_by_top_p(base, top_p) & oracle.kept_by_min_p(row, min_p))


@pytest.mark.parametrize("name", PROBS)
@pytest.mark.parametrize(
    ("function", "arguments", "filters"),
    [
        (sampling.sampling_from_probs, (), {}),
        (sampling.top_p_sampling_from_probs, (0.7,), {"top_p": 0.7}),
        (sampling.top_k_sampling_from_probs, (3,), {"top_k": 3}),
        (sampling.min_p_sampling_from_probs, (0.3,), {"min_p": 0.3}),
        (sampling.top_k_top_p_sampling_from_probs, (5, 0.6), {"top_k": 5, "top_p": 0.6}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_draws_from_probs_follow_the_distribution(function, arguments, filters, name):
    row = PROBS[name]
    assert oracle.chi_square_fits(many(function, row, *arguments, seed=11), kept(row, **filters))


@pytest.mark.parametrize("temperature", [None, 0.5, 2.0])
@pytest.mark.parametrize(
    ("function", "arguments", "filters"),
    [
        (sampling.sampling_from_logits, (), {}),
        (sampling.top_p_sampling_from_logits, (0.7,), {"top_p": 0.7}),
        (sampling.top_k_sampling_from_logits, (3,), {"top_k": 3}),
        (sampling.min_p_sampling_from_logits, (0.3,), {"min_p": 0.3}),
        (sampling.top_k_top_p_sampling_from_logits, (5, 0.6), {"top_k": 5, "top_p": 0.6}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_draws_from_logits_follow_the_distribution(function, arguments, filters, temperature):
    row = [0.3, -1.0, 2.0, 1.1, -INF, 0.9, 1.7, 0.0]
    exact = oracle.softmax(torch.tensor([row]).clamp(min=-1e9), temperature or 1.0)[0].tolist()
    counts = many(function, row, *arguments, seed=12, temperature=temperature)
    assert oracle.chi_square_fits(counts, kept(exact, **filters))


@pytest.mark.parametrize("order", ["top_k_first", "joint"])
def test_order_of_filters_decides(order):
    row = [0.4, 0.3, 0.2, 0.1]
    joint = order == "joint"
    expected = kept(row, top_k=3, top_p=0.75, joint=joint)
    assert sum(p > 0 for p in expected) == (3 if joint else 2)
    options = {"filter_apply_order": order, "seed": 13}
    counts = many(sampling.top_k_top_p_sampling_from_probs, row, 3, 0.75, **options)
    assert oracle.chi_square_fits(counts, expected)
    logits = [math.log(p) for p in row]
    assert (counts == many(sampling.top_k_top_p_sampling_from_logits, logits, 3, 0.75, **options)).all()


def test_seeds_one_a_row_and_offsets_draw_independent_tokens():
    row, zeros = PROBS["random"], torch.zeros(DRAWS, dtype=torch.int64)
    by_seed = many(sampling.sampling_from_probs, row, seed=torch.arange(DRAWS))
    by_offset = many(sampling.sampling_from_probs, row, seed=zeros, offset=torch.arange(DRAWS))
    assert oracle.chi_square_fits(by_seed, row)
    assert oracle.chi_square_fits(by_offset, row)


def test_the_whole_of_a_large_flat_vocabulary_is_drawn():
    tokens = sampling.sampling_from_logits(torch.zeros(64, 20_000), seed=1)
    counts = oracle.histogram(tokens // 2500, 8)
    assert oracle.chi_square_fits(counts, [1 / 8] * 8)


@given(data=st.data())
def test_a_token_does_not_depend_on_the_batch(data):
    """Neither with one seed (at the same place) nor with seeds of their own (at any place)."""
    rows = data.draw(st.integers(1, 6))
    logits, seeds = random_normal((rows, 50), seed=rows), torch.arange(100, 100 + rows)
    filters = {"top_k": torch.arange(1, rows + 1), "top_p": torch.linspace(0.5, 1.0, rows)}
    whole = sampling.top_k_top_p_sampling_from_logits(logits, **filters, seed=seeds)
    order = torch.tensor(data.draw(st.permutations(range(rows)))[: data.draw(st.integers(1, rows))])
    some = {name: value[order] for name, value in filters.items()}
    part = sampling.top_k_top_p_sampling_from_logits(logits[order], **some, seed=seeds[order])
    assert torch.equal(part, whole[order])
    first = sampling.sampling_from_logits(logits, seed=7)
    assert torch.equal(sampling.sampling_from_logits(logits[: len(order)], seed=7), first[: len(order)])


def test_every_route_to_a_distribution_draws_the_same_tokens():
    logits = random_normal((200, 300), scale=2.0)
    probs, options = sampling.softmax(logits, backend="reference"), {"seed": 3, "offset": 9}
    plain = sampling.sampling_from_logits(logits, **options)
    assert torch.equal(plain, sampling.sampling_from_probs(probs, **options))
    by_hand = sampling.min_p_renorm_probs(sampling.top_k_renorm_probs(probs, 20), 0.1)
    direct = sampling.top_k_sampling_from_probs(sampling.min_p_renorm_probs(probs, 0.1), 20, **options)
    assert torch.equal(direct, sampling.sampling_from_probs(by_hand, **options))
    assert torch.equal(sampling.top_p_sampling_from_logits(logits, 1.0, **options), plain)


@pytest.mark.parametrize("vocab", [1, 6, 300, 1500])
def test_draws_are_the_stated_races(vocab):
    logits = random_normal((20, vocab), scale=2.0)
    tokens = sampling.sampling_from_logits(logits, seed=-5, offset=2**40 + 9)
    weights = oracle.softmax(logits).tolist()
    assert tokens.tolist() == [oracle.race(weights[row], row, -5, 2**40 + 9) for row in range(20)]


@pytest.mark.parametrize("order", ["top_k_first", "joint"])
@pytest.mark.parametrize("p", [0.9, 0.4, 0.05, 1e-4])
def test_draws_with_top_p_are_the_first_of_the_nucleus(p, order):
    probs = (torch.rand(40, 200) * 1000).round() / 1000
    top_k = 60
    tokens = sampling.top_k_top_p_sampling_from_probs(probs, top_k, p, filter_apply_order=order, seed=7)
    for row, weights in enumerate(probs.tolist()):
        by_k = oracle.kept_by_top_k(weights, top_k)
        base = weights if order == "joint" else [w if t in by_k else 0.0 for t, w in enumerate(weights)]
        nucleus = oracle.kept_by_top_p(base, p) & by_k
        racing = [w if t in by_k else 0.0 for t, w in enumerate(weights)]
        assert int(tokens[row]) == oracle.race(racing, row, 7, finish=nucleus)


def test_indices_share_rows_and_parameters_belong_to_outputs():
    probs = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.3, 0.7]])
    indices = torch.tensor([1, 1, 0, 1])
    top_k = torch.tensor([1, 0, 0, 1])
    tokens = sampling.top_k_sampling_from_probs(probs, top_k, indices=indices, seed=5)
    expected = sampling.top_k_sampling_from_probs(probs[indices], top_k, seed=5)
    assert torch.equal(tokens, expected)
    assert tokens[[0, 3]].tolist() == [2, 2]


def test_indices_out_of_range():
    probs, indices = torch.tensor([[0.0, 1.0]]), torch.tensor([0, 1, -1], dtype=torch.int32)
    tokens, valid = sampling.sampling_from_probs(probs, indices=indices, return_valid=True)
    assert tokens.tolist() == [1, 0, 0]
    assert valid.tolist() == [True, False, False]
    nothing = sampling.sampling_from_probs(torch.empty(0, 2), indices=indices, return_valid=True)
    assert nothing[1].tolist() == [False] * 3
    with settings.override(debug_checks=True), pytest.raises(ArgumentError, match=r"`indices`.*\[1, -1\]"):
        sampling.sampling_from_probs(probs, indices=indices)


BAD_PROBS = [[0.0, 0.0, 0.0], [NAN, 0.5, 0.5], [INF, 0.5, 0.5], [-1.0, 0.0, -2.0], [NAN] * 3]
BAD_LOGITS = [[-INF, -INF, -INF], [NAN, 0.5, 0.5], [0.0, INF, 0.0], [NAN, -INF, -INF], [INF, INF, INF]]
FROM_PROBS = [
    (sampling.sampling_from_probs, ()),
    (sampling.top_p_sampling_from_probs, (0.5,)),
    (sampling.top_k_sampling_from_probs, (2,)),
    (sampling.min_p_sampling_from_probs, (0.5,)),
    (sampling.top_k_top_p_sampling_from_probs, (2, 0.5)),
]
FROM_LOGITS = [(getattr(sampling, f.__name__.replace("probs", "logits")), arguments) for f, arguments in FROM_PROBS]


@pytest.mark.parametrize(
    ("function", "arguments", "rows"),
    [(*case, BAD_PROBS) for case in FROM_PROBS] + [(*case, BAD_LOGITS) for case in FROM_LOGITS],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_bad_rows_give_token_0_and_do_not_touch_others(function, arguments, rows):
    good = [0.0, 0.0, 1.0] if rows is BAD_PROBS else [-INF, -INF, 0.0]
    source = torch.tensor([good, *rows, good])
    tokens, valid = function(source, *arguments, return_valid=True)
    assert tokens.tolist() == [2, 0, 0, 0, 0, 0, 2]
    assert valid.tolist() == [True] + [False] * 5 + [True]
    with pytest.raises(ArgumentError, match="free of NaN"):
        function(source, *arguments, check_nan=True)
    function(torch.tensor([good]), *arguments, check_nan=True)


@pytest.mark.parametrize("value", [-1.0, NAN])
def test_bad_temperatures_make_bad_rows(value):
    given = torch.tensor([value, 1.0])
    _, valid = sampling.sampling_from_logits(torch.zeros(2, 3), temperature=given, return_valid=True)
    assert valid.tolist() == [False, True]


def test_limits_of_parameters():
    logits = torch.tensor([[1.0, 5.0, 3.0, 5.0]]).repeat(200, 1)
    best = {1, 3}
    for function, arguments in [
        (sampling.top_p_sampling_from_logits, (0.0,)),
        (sampling.top_p_sampling_from_logits, (-1.0,)),
        (sampling.min_p_sampling_from_logits, (9.0,)),
        (sampling.top_k_sampling_from_logits, (1,)),  # two tokens share the first place
    ]:
        assert set(function(logits, *arguments, seed=1).tolist()) == best
    assert set(sampling.sampling_from_logits(logits, temperature=0.0, seed=1).tolist()) == best
    whole = sampling.sampling_from_logits(logits, seed=1, temperature=9.0)
    for function, arguments in [
        (sampling.top_p_sampling_from_logits, (1.0,)),
        (sampling.top_p_sampling_from_logits, (7.0,)),
        (sampling.min_p_sampling_from_logits, (0.0,)),
        (sampling.min_p_sampling_from_logits, (NAN,)),
        (sampling.top_k_sampling_from_logits, (0,)),
        (sampling.top_k_sampling_from_logits, (sys.maxsize,)),
    ]:
        assert torch.equal(function(logits, *arguments, seed=1, temperature=9.0), whole)


def test_rows_are_relative_to_their_sum():
    probs = torch.rand(100, 20)
    scaled = probs * torch.logspace(-20, 20, 100).unsqueeze(1)
    exact = probs * 2.0 ** torch.arange(-50, 50).unsqueeze(1)
    for function, arguments in FROM_PROBS:
        assert torch.equal(function(probs, *arguments, seed=2), function(exact, *arguments, seed=2))
        assert bool(function(scaled, *arguments, return_valid=True)[1].all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_inputs_are_taken_as_they_are(dtype):
    logits = random_normal((50, 100), dtype, scale=2.0)
    for function, arguments in FROM_LOGITS:
        assert torch.equal(function(logits, *arguments, seed=2), function(logits.float(), *arguments, seed=2))


def test_strided_dlpack_out_and_empty():
    logits = random_normal((6, 40))
    expected = sampling.sampling_from_logits(logits[::2, 1::3].contiguous(), seed=4)
    assert torch.equal(sampling.sampling_from_logits(logits[::2, 1::3], seed=4), expected)
    assert torch.equal(sampling.sampling_from_logits(logits[::2, 1::3].contiguous().numpy(), seed=4), expected)
    out = torch.full((6,), -1, dtype=torch.int32)[::2]
    assert sampling.sampling_from_logits(logits[::2, 1::3], seed=4, out=out) is out
    assert torch.equal(out, expected)
    assert sampling.sampling_from_logits(torch.empty(0, 4)).shape == (0,)
    assert sampling.sampling_from_logits(logits, indices=torch.empty(0, dtype=torch.int64)).shape == (0,)
