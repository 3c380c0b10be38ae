"""Top-k selection against a plain sort in Python."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from warploom.core.errors import ArgumentError, UnsupportedError
from warploom.core.testing import random_normal, random_strided
from warploom.sampling import top_k

rows = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=30)


def stable_order(row):
    """Indices, largest value first, NaN before all numbers, equal ones by index."""
    return sorted(range(len(row)), key=lambda i: (-math.inf if math.isnan(row[i]) else -row[i], i))


@given(row=rows, data=st.data())
def test_deterministic_takes_the_smallest_indices_of_equal_values(row, data):
    k = data.draw(st.integers(1, len(row)))
    values, indices = top_k(torch.tensor([row]), k, sorted=True, deterministic=True)
    assert indices.tolist() == [stable_order(row)[:k]]
    assert values.tolist() == [[row[i] for i in stable_order(row)[:k]]]
    unsorted = top_k(torch.tensor([row]), k, deterministic=True)[1]
    assert set(unsorted[0].tolist()) == set(stable_order(row)[:k])


@pytest.mark.parametrize("backend", ["torch", "reference", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_and_indices_belong_together(dtype, backend):
    x = random_strided((5, 400), dtype, padding=1)
    values, indices = top_k(x, 37, sorted=True, backend=backend)
    assert (values.dtype, indices.dtype) == (dtype, torch.int64)
    assert torch.equal(values, x.float().sort(descending=True).values[:, :37].to(dtype))
    assert torch.equal(x.gather(1, indices), values)
    assert all(len(set(row)) == 37 for row in indices.tolist())


@pytest.mark.parametrize("deterministic", [False, True])
def test_nan_comes_first(deterministic):
    x = torch.tensor([[1.0, math.nan, math.inf, -math.inf]])
    _, indices = top_k(x, 3, sorted=True, deterministic=deterministic)
    assert indices.tolist() == [[1, 2, 0]]


def test_out_and_empty_batches():
    x = random_normal((3, 20))
    values, indices = torch.empty(3, 4), torch.empty(3, 4, dtype=torch.int64)
    result = top_k(x, 4, True, True, out=(values, indices))
    assert result[0] is values
    assert result[1] is indices
    assert torch.equal(values, x.topk(4).values)
    assert top_k(torch.empty(0, 20), 4)[1].shape == (0, 4)


def test_torch_refuses_to_promise_an_order():
    with pytest.raises(UnsupportedError, match="equal values"):
        top_k(torch.zeros(1, 4), 2, deterministic=True, backend="torch")


@pytest.mark.parametrize("k", [0, -1, 5, 1.0, True, "2"])
def test_wrong_k(k):
    with pytest.raises(ArgumentError, match="`k` must be an integer from 1 to 4"):
        top_k(torch.zeros(1, 4), k)


def test_wrong_out():
    with pytest.raises(ArgumentError, match=r"`out\[1\]`"):
        top_k(torch.zeros(1, 4), 2, out=(torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.int32)))
    with pytest.raises(ArgumentError, match="pair"):
        top_k(torch.zeros(1, 4), 2, out=(torch.zeros(1, 2),))
