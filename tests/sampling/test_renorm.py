"""Filtered distributions and masked logits against exact arithmetic."""

import math

import pytest
import sampling_oracle as oracle
import torch
from hypothesis import given
from hypothesis import strategies as st

from warploom.core.errors import ArgumentError
from warploom.core.testing import assert_close, random_normal, random_strided
from warploom.sampling import (
    min_p_renorm_probs,
    sample,
    softmax,
    top_k_mask_logits,
    top_k_renorm_probs,
    top_p_renorm_probs,
)
from warploom.sampling.renorm import renorm

INF, NAN = math.inf, math.nan
FILTERS = {
    "top_k": (top_k_renorm_probs, oracle.kept_by_top_k),
    "top_p": (top_p_renorm_probs, oracle.kept_by_top_p),
    "min_p": (min_p_renorm_probs, oracle.kept_by_min_p),
}

# Multiples of 1/64 add up exactly in every arithmetic, and small ones of them are often equal.
weights = st.lists(st.integers(0, 12), min_size=1, max_size=24).filter(any).map(lambda row: [x / 64 for x in row])
parameters = {
    "top_k": st.integers(-2, 26),
    "top_p": st.one_of(st.sampled_from([-1.0, 0.0, 0.25, 0.5, 0.75, 1.0, 2.0]), st.floats(0, 1, width=32)),
    "min_p": st.one_of(st.sampled_from([-1.0, 0.0, 0.5, 1.0, 3.0]), st.floats(0, 1, width=32)),
}


@pytest.mark.parametrize("name", FILTERS)
@given(data=st.data())
def test_keeps_the_stated_tokens(name, data):
    function, kept = FILTERS[name]
    row, parameter = data.draw(weights), data.draw(parameters[name])
    expected = oracle.restrict(row, kept(row, parameter))
    kind = torch.int32 if name == "top_k" else torch.float32
    other = [1.0] * len(row)
    for given_parameter in (parameter, torch.tensor([parameter, parameter], dtype=kind)):
        probs = function(torch.tensor([row, other]), given_parameter)
        assert_close(probs[0], torch.tensor(expected))
        assert_close(probs[1], torch.full((len(row),), 1 / len(row)))  # equal tokens stay together


@given(row=weights, k=parameters["top_k"], p=parameters["top_p"])
def test_both_orders_of_two_filters(row, k, p):
    probs = torch.tensor([row])
    by_k, by_p = oracle.kept_by_top_k(row, k), oracle.kept_by_top_p(row, p)
    filters = {"top_k": k, "top_p": p}
    joint = renorm("test", probs, ("top_p", "top_k"), filters)
    assert set(joint[0].nonzero().flatten().tolist()) == {i for i in by_k & by_p if row[i]}
    first = [x if i in by_k else 0.0 for i, x in enumerate(row)]
    # The share is one of what top-k has left.
    chained = renorm("test", probs, ("top_k", "top_p"), filters)
    kept = oracle.kept_by_top_p(first, p) & by_k
    assert set(chained[0].nonzero().flatten().tolist()) == {i for i in kept if row[i]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", FILTERS)
def test_large_rows_of_each_dtype(name, dtype):
    function, kept = FILTERS[name]
    parameter = {"top_k": 20, "top_p": 0.7, "min_p": 0.2}[name]
    probs = softmax(random_normal((3, 500), scale=2.0)).to(dtype)
    result = function(probs, parameter)
    assert result.dtype == dtype
    expected = [oracle.restrict(row, kept(row, parameter)) for row in probs.tolist()]
    assert_close(result, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("name", FILTERS)
def test_bad_rows(name):
    function, _ = FILTERS[name]
    parameter = 2 if name == "top_k" else 0.5
    rows = torch.tensor([[0.0] * 3, [0.2, NAN, 0.1], [INF, 0.5, 0.5], [-1.0, 0.5, 0.5], [-1.0, -2.0, 0.0]])
    probs = function(rows, parameter)
    expected = torch.tensor([[0.0] * 3, [NAN] * 3, [NAN] * 3, [0.0, 0.5, 0.5], [0.0] * 3])
    torch.testing.assert_close(probs, expected, equal_nan=True)


@pytest.mark.parametrize("name", ["top_p", "min_p"])
def test_nan_parameters_keep_all(name):
    function, _ = FILTERS[name]
    probs = torch.tensor([[0.5, 0.25, 0.25]])
    assert torch.equal(function(probs, NAN), probs)
    assert torch.equal(function(probs, torch.tensor([NAN])), probs)


@pytest.mark.parametrize("name", FILTERS)
def test_in_place_strided_and_empty(name):
    function, _ = FILTERS[name]
    parameter = 4 if name == "top_k" else 0.5
    probs = random_strided((3, 20), padding=1, last_contiguous=False).abs()
    expected = function(probs.contiguous(), parameter)
    assert torch.equal(function(probs, parameter), expected)
    assert function(probs, parameter, out=probs) is probs
    assert torch.equal(probs, expected)
    assert function(torch.empty(0, 7), parameter).shape == (0, 7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("k", [-1, 0, 1, 3, 11, 12, 50, 2**40])
def test_top_k_mask(k, dtype):
    logits = (random_normal((4, 12)) * 2).round().to(dtype)  # many equal values
    masked = top_k_mask_logits(logits, k)
    assert masked.dtype == dtype
    for row, result in zip(logits.tolist(), masked.tolist(), strict=True):
        kept = oracle.kept_by_top_k(row, k)
        assert result == [x if i in kept else -INF for i, x in enumerate(row)]
    assert torch.equal(top_k_mask_logits(logits, torch.full((4,), k)), masked)


def test_top_k_mask_of_odd_rows():
    rows = torch.tensor([[NAN, 1.0, 2.0], [INF, 1.0, 2.0], [-INF, -INF, 1.0], [-INF] * 3])
    masked = top_k_mask_logits(rows, 1)
    expected = torch.tensor([[NAN, 1.0, 2.0], [INF, -INF, -INF], [-INF, -INF, 1.0], [-INF] * 3])
    torch.testing.assert_close(masked, expected, equal_nan=True)


def test_mask_then_softmax_is_top_k_of_the_softmax():
    logits = random_normal((5, 300), scale=3.0)
    assert_close(softmax(top_k_mask_logits(logits, 7)), top_k_renorm_probs(softmax(logits), 7))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: top_k_renorm_probs(x, 1.5), "`top_k` must be an integer"),
        (lambda x: top_k_renorm_probs(x, True), "`top_k`"),
        (lambda x: top_k_renorm_probs(x, torch.ones(2)), "int32 or int64"),
        (lambda x: top_p_renorm_probs(x, torch.ones(3)), r"\[2\]"),
        (lambda x: top_p_renorm_probs(x, torch.ones(2, 1)), "`top_p`"),
        (lambda x: min_p_renorm_probs(x, None), "DLPack"),
        (lambda x: top_p_renorm_probs(x[0], 0.5), "`probs`"),
        (lambda x: top_k_mask_logits(x, 1, out=torch.zeros(2, 3, dtype=torch.float16)), "`out`"),
        (lambda x: top_k_mask_logits(x, 1, backend="fast"), "reference"),
        (lambda x: renorm("op", x, ("top_p", "softmax"), {}), "`steps`"),
        (lambda x: sample.draw("op", x, ("top_k", "top_k"), {}, sample.DrawOptions()), "`steps`"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ArgumentError, match=message):
        call(torch.rand(2, 3))
