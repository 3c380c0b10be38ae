"""Softmax with temperature on the CPU backends, and the shape of the kernel's launch."""

import math

import pytest
import sampling_oracle as oracle
import torch
from hypothesis import given
from hypothesis import strategies as st

from warploom.core.errors import ArgumentError, UnsupportedError
from warploom.core.testing import assert_close, cases, random_normal, random_strided
from warploom.sampling import softmax
from warploom.sampling.backends.cuda.softmax import launch_shape

BACKENDS = ("reference", "torch")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NAN = math.nan


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(*cases(batch=[1, 3], vocab=[1, 2, 33, 1000], dtype=DTYPES))
def test_matches_float64(case, backend):
    logits = random_normal((case.batch, case.vocab), case.dtype, scale=5.0)
    assert_close(softmax(logits, backend=backend), oracle.softmax(logits))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("temperature", [1e-3, 0.3, 1.0, 7.0, 1e4])
def test_temperature(temperature, backend):
    logits = random_normal((4, 100), scale=3.0)
    assert_close(softmax(logits, temperature, backend=backend), oracle.softmax(logits, temperature))
    rows = torch.tensor([temperature, 1.0, 2.0, 0.5])
    for per_row in (rows, rows.double(), rows.repeat_interleave(2)[::2], rows.numpy()):
        assert_close(softmax(logits, per_row, backend=backend), oracle.softmax(logits, rows))
    for shared in (rows[:1], rows[0]):
        assert torch.equal(softmax(logits, shared, backend=backend), softmax(logits, temperature, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize(("row", "temperature", "expected"), oracle.ODD_ROWS)
def test_stated_results_of_odd_rows(row, temperature, expected, per_row, backend):
    logits = torch.tensor([row, [0.0] * 3])
    given = torch.tensor([temperature, 1.0]) if per_row else temperature
    probs = softmax(logits, given, backend=backend)
    torch.testing.assert_close(probs[0], torch.tensor(expected), equal_nan=True)
    if per_row:
        torch.testing.assert_close(probs[1], torch.full((3,), 1 / 3))


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_and_out(backend):
    logits = random_strided((3, 40), padding=1, last_contiguous=False)
    storage = torch.full((3, 50), NAN)
    out = softmax(logits, out=storage[:, 4:44], backend=backend)
    assert out.data_ptr() == storage[:, 4:].data_ptr()
    assert_close(storage[:, 4:44], oracle.softmax(logits))
    assert torch.isnan(storage[:, :4]).all()
    assert torch.isnan(storage[:, 44:]).all()


def test_inputs_of_other_libraries_and_empty_batches():
    logits = random_normal((2, 5))
    assert torch.equal(softmax(logits.numpy()), softmax(logits))
    assert softmax(torch.empty(0, 5)).shape == (0, 5)
    assert softmax(torch.empty(0, 5), torch.empty(0)).shape == (0, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"logits": torch.zeros(5)}, "`logits` must be a tensor"),
        ({"logits": torch.zeros(2, 5, dtype=torch.float64)}, "float32"),
        ({"logits": torch.zeros(2, 0)}, "vocabulary"),
        ({"logits": [[1.0]]}, "DLPack"),
        ({"logits": torch.zeros(2, 5), "temperature": torch.ones(3)}, r"\[2\]"),
        ({"logits": torch.zeros(2, 5), "temperature": "hot"}, "`temperature`"),
        ({"logits": torch.zeros(2, 5), "temperature": True}, "`temperature`"),
        ({"logits": torch.zeros(2, 5), "temperature": torch.ones(2, dtype=torch.int32)}, "float"),
        ({"logits": torch.zeros(2, 5), "out": torch.zeros(2, 4)}, "`out`"),
        ({"logits": torch.zeros(2, 5), "out": torch.zeros(2, 5, dtype=torch.float16)}, "`out`"),
        ({"logits": torch.zeros(2, 5), "out": torch.zeros(5, 2).t()}, "`out`"),
        ({"logits": torch.zeros(2, 5), "backend": "cudda"}, "Did you mean 'cuda'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        softmax(**arguments)


def test_the_kernel_refuses_cpu_tensors():
    with pytest.raises(UnsupportedError, match="GPU"):
        softmax(torch.zeros(1, 2), backend="cuda")


@given(
    vocab=st.integers(1, 1_000_000),
    itemsize=st.sampled_from([2, 4]),
    arch=st.sampled_from([80, 89, 90, 100, 120]),
)
def test_launch_shapes_cover_the_row(vocab, itemsize, arch):
    shape = launch_shape(vocab, itemsize, arch)
    width = 16 // itemsize
    assert shape.blocks in ((1,) if arch < 90 else (1, 2, 4, 8) if arch == 120 else (1, 2, 4, 8, 16))
    assert shape.threads % 32 == 0
    assert 2 * (width - 1) <= shape.threads <= 512  # one thread for each element outside the vectors
    share = math.ceil(vocab / width / shape.blocks)
    assert not shape.resident or share <= shape.threads * 8
    assert shape.blocks == 1 or share >= 2048  # every block of a cluster has something to do
