"""All-reduce on CPU tensors: run alone or under ``mpirun -n N python -m pytest -m mpi tests/comm``."""

import pytest
import torch
from comm_oracle import FLOATS, in_oracle, in_rank_order, message, messages, ragged_shapes, reduced, spaced

from warploom.comm import all_reduce
from warploom.core.errors import ArgumentError, CommunicationError, UnsupportedError
from warploom.core.testing import assert_close, cases, poison_like

pytestmark = pytest.mark.mpi
BACKENDS = ["auto", "mpi", "reference"]
DTYPES = [*FLOATS, torch.float64, torch.int32, torch.int64, torch.uint8]


@pytest.mark.parametrize(*cases(in_oracle, dtype=DTYPES, op=["sum", "avg", "max", "min"], backend=BACKENDS))
def test_values(world, case):
    for seed, shape in enumerate(ragged_shapes(8, seed=1)):
        x = message(world.rank, shape, case.dtype, seed)
        expected = reduced(messages(world.size, shape, case.dtype, seed), case.op)
        result = all_reduce(x, world, case.op, backend=case.backend)
        assert result.dtype == case.dtype
        assert_close(result, expected, dtype=case.dtype)


@pytest.mark.parametrize(*cases(dtype=FLOATS, n=[7, 20_001, 300_000], backend=BACKENDS))
def test_sums_are_taken_in_rank_order(world, case):
    x = message(world.rank, (case.n,), case.dtype)
    result = all_reduce(x, world, backend=case.backend)
    assert torch.equal(result, in_rank_order(messages(world.size, (case.n,), case.dtype)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_in_place_and_into_a_given_tensor(world, backend):
    expected = in_rank_order(messages(world.size, (5, 8), torch.float32))
    x = message(world.rank, (5, 8), torch.float32)
    out = poison_like(x)
    assert all_reduce(x, world, out=out, backend=backend) is out
    assert torch.equal(out, expected)
    assert torch.equal(x, message(world.rank, (5, 8), torch.float32)), "the input was changed"
    assert all_reduce(x, world, out=x, backend=backend) is x
    assert torch.equal(x, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_inputs_and_outputs(world, backend):
    x = spaced(message(world.rank, (4, 6), torch.bfloat16))
    out = spaced(torch.zeros(4, 6, dtype=torch.bfloat16))
    expected = in_rank_order(messages(world.size, (4, 6), torch.bfloat16))
    all_reduce(x, world, out=out, backend=backend)
    assert torch.equal(out, expected)
    transposed = all_reduce(x.t(), world, backend=backend)
    assert torch.equal(transposed, expected.t())


def test_nan_and_infinities_reach_every_rank(world):
    x = torch.zeros(3)
    if world.rank == world.size - 1:
        x[0], x[1] = float("nan"), float("inf")
    for op in ("sum", "max"):
        result = all_reduce(x, world, op)
        assert result[0].isnan()
        assert result[1] == float("inf")


def test_numpy_arrays_are_taken(world):
    x = message(world.rank, (4,), torch.float32).numpy()
    assert torch.equal(all_reduce(x, world), in_rank_order(messages(world.size, (4,), torch.float32)))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"op": "product"}, ArgumentError, "`op` must be one of 'sum'"),
        ({"out": torch.zeros(5)}, ArgumentError, "`out`"),
        ({"out": torch.zeros(4, dtype=torch.float16)}, ArgumentError, "`out`"),
        ({"backend": "onshot"}, ArgumentError, "Did you mean 'oneshot'"),
        ({"backend": "oneshot"}, UnsupportedError, "NVIDIA GPU"),
        ({"backend": "nccl"}, UnsupportedError, "NVIDIA GPU"),
        ({"x": torch.zeros(4, dtype=torch.bool)}, ArgumentError, "`x` must be of dtype"),
        ({"x": [1.0]}, ArgumentError, "`x`"),
        ({"comm": None}, ArgumentError, "`comm` must be a warploom.comm.Communicator"),
    ],
)
def test_wrong_arguments(world, change, error, text):
    arguments = {"x": torch.zeros(4), "comm": world, **change}
    with pytest.raises(error) as caught:
        all_reduce(**arguments)
    assert text in str(caught.value)
    assert_close(all_reduce(torch.ones(2), world), torch.full((2,), float(world.size)))  # nothing was left half done


def test_different_shapes_raise_on_every_rank_and_do_no_harm(world):
    if world.size == 1:
        pytest.skip("one rank agrees with itself")
    with pytest.raises(CommunicationError, match=r"all_reduce, call \d+: ranks disagree: rank 0.*rank 1"):
        all_reduce(torch.zeros(4 + world.rank % 2), world)
    with pytest.raises(CommunicationError, match="bfloat16"):
        all_reduce(torch.zeros(4, dtype=(torch.bfloat16, torch.float32)[world.rank % 2]), world)
    assert_close(all_reduce(torch.ones(2), world), torch.full((2,), float(world.size)))
