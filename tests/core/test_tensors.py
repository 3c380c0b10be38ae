"""Argument checks by named dimensions, and DLPack inputs."""

import numpy as np
import pytest
import torch

from warploom.core.errors import ArgumentError, WarploomError
from warploom.core.tensors import Checker, as_dtype, as_tensor, as_tensors


def test_binds_and_compares_named_dimensions():
    check = Checker("mm")
    check.tensor("a", torch.zeros(2, 8), "m k")
    with pytest.raises(ArgumentError, match=r"mm: `b` must be of k = 8 \(from `a`\), got k = 7"):
        check.tensor("b", torch.zeros(7, 3), "k n")
    assert (check["m"], check["k"]) == (2, 8)


@pytest.mark.parametrize(
    ("dims", "shape", "fits"),
    [
        ("a b", (2, 3), True),
        ("a b", (2, 3, 4), False),
        ("pages 2 size", (5, 2, 16), True),
        ("pages 2 size", (5, 3, 16), False),
        ("*lead dim", (7,), True),
        ("*lead dim", (2, 3, 7), True),
        ("*lead dim", (), False),
        ("_ dim", (9, 7), True),
        ("n n", (3, 3), True),
        ("n n", (3, 4), False),
    ],
)
def test_dimension_patterns(dims, shape, fits):
    check = Checker("op")
    if fits:
        check.tensor("x", torch.zeros(shape), dims)
    else:
        with pytest.raises(ArgumentError, match="op: `x` must be"):
            check.tensor("x", torch.zeros(shape), dims)


def test_leading_group_is_the_product():
    check = Checker("op")
    check.tensor("x", torch.zeros(2, 3, 7), "*tokens dim")
    assert check["tokens"] == 6


def test_dtype_message_lists_what_is_accepted():
    with pytest.raises(ArgumentError, match="of dtype float16 or bfloat16, got float32"):
        Checker("op").tensor("q", torch.zeros(2), "n", dtype=(torch.float16, torch.bfloat16))


def test_device_mismatch_names_both():
    check = Checker("op")
    check.tensor("a", torch.zeros(2), "n")
    with pytest.raises(ArgumentError, match="on cpu like `a`, got a tensor on meta"):
        check.tensor("b", torch.zeros(2, device="meta"), "n")
    check.tensor("c", torch.zeros(2, device="meta"), "n", device="any")


def test_contiguity():
    x = torch.zeros(4, 6)
    check = Checker("op")
    check.tensor("x", x[:, :3], "m n", contiguous="last")
    with pytest.raises(ArgumentError, match="contiguous"):
        check.tensor("x", x[:, :3], "m n", contiguous="all")
    with pytest.raises(ArgumentError, match=r"last dimension.*\.contiguous"):
        Checker("op").tensor("x", x.T, "m n", contiguous="last")


def test_optional():
    assert Checker("op").tensor("x", None, "n", optional=True) is None
    with pytest.raises(ArgumentError, match="NoneType"):
        Checker("op").tensor("x", None, "n")


def test_output_is_allocated_or_checked():
    check = Checker("op")
    check.tensor("x", torch.zeros(2, 3), "m n")
    assert check.output("out", None, (2, 3), torch.float16).dtype is torch.float16
    mine = torch.empty(2, 3)
    assert check.output("out", mine, (2, 3), torch.float32) is mine
    with pytest.raises(ArgumentError, match="of shape"):
        check.output("out", torch.empty(3, 2), (2, 3), torch.float32)
    with pytest.raises(ArgumentError, match="of dtype float16"):
        check.output("out", mine, (2, 3), torch.float16)


def test_dlpack_shares_memory():
    array = np.arange(6, dtype=np.float32)
    tensor = as_tensor(array)
    array[0] = 42
    assert tensor[0].item() == 42


def test_read_only_arrays_are_taken():
    array = np.arange(6, dtype=np.float32)
    array.flags.writeable = False
    assert as_tensor(array).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("value", [[1, 2], 3.0, "x", object()])
def test_not_a_tensor(value):
    with pytest.raises(ArgumentError, match="DLPack"):
        as_tensor(value)


def test_errors_are_builtin_errors_too():
    with pytest.raises(ValueError, match="op"):
        Checker("op").require(False, "x", "positive", -1)
    assert issubclass(ArgumentError, WarploomError)


@pytest.mark.parametrize("value", ["float16", "torch.float16", torch.float16])
def test_as_dtype(value):
    assert as_dtype(value, "op", "dtype") is torch.float16


@pytest.mark.parametrize("value", ["nonsense", "nn", 3])
def test_as_dtype_refuses(value):
    with pytest.raises(ArgumentError, match="torch dtype"):
        as_dtype(value, "op", "dtype")


def test_traceable():
    def shape_of(x):
        check = Checker("op")
        check.tensor("x", x, "m n", dtype=torch.float32, contiguous="last")
        return check.output("out", None, (check["m"],), torch.float32).fill_(1)

    compiled = torch.compile(shape_of, fullgraph=True, backend="aot_eager", dynamic=True)
    assert compiled(torch.zeros(3, 4)).tolist() == [1, 1, 1]
    assert compiled(torch.zeros(5, 4)).shape == (5,)


def test_values_are_taken_by_name():
    x = torch.zeros(2)
    same, wrapped, none = as_tensors("mm", a=x, b=np.ones(2), c=None)
    assert same is x
    assert wrapped.tolist() == [1, 1]
    assert none is None
    with pytest.raises(ArgumentError, match="mm: `b` must be a torch tensor"):
        as_tensors("mm", a=x, b=[1, 2])
