"""Launches that are prepared once: what they hand to the driver."""

import ctypes
from types import SimpleNamespace

import pytest
import torch

from warploom.core.descriptors import TensorMap
from warploom.core.errors import CompileError
from warploom.core.jit import ParamStruct, PreparedLaunch, i32, ptr
from warploom.core.jit import kernel as kernel_module


class CopyParams(ParamStruct):
    cpp_name = "doc::CopyParams"
    out: ptr
    x: ptr
    n: i32


@pytest.fixture
def kernel(monkeypatch):
    """A kernel whose launches are written down, with the memory that they point to."""
    launches = []

    def launch(function, *rest):
        *shape, smem, stream, where, extra = rest
        addresses = (ctypes.c_void_p * 2).from_address(where)
        launches.append(
            SimpleNamespace(
                function=function, shape=tuple(shape), smem=smem, stream=stream, extra=extra,
                params=ctypes.string_at(addresses[0], 24), map=ctypes.string_at(addresses[1], 128),
            )
        )  # fmt: skip
        return (0,)

    kernel = SimpleNamespace(
        device=0, record={"name": "copy"}, launches=launches, _function="f",
        _driver=SimpleNamespace(cuLaunchKernel=launch),
    )  # fmt: skip
    monkeypatch.setattr(kernel_module, "ensure_context", lambda device: None)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 77, raising=False)
    return kernel


def prepared(kernel, config=None):
    args = CopyParams(out=1, x=2, n=3), TensorMap(b"a" * 128)
    return PreparedLaunch(kernel, ((5, 1, 1), (128, 1, 1), 4096), args, config=config, pointers=2), args


def test_pointers_are_new_and_the_rest_is_not(kernel):
    launch, args = prepared(kernel)
    launch.launch(10, 20)
    launch.launch(30, 40)
    assert [x.params for x in kernel.launches] == [CopyParams(out=a, x=b, n=3).packed for a, b in ((10, 20), (30, 40))]
    first = kernel.launches[0]
    assert (first.function, first.shape, first.smem, first.stream) == ("f", (5, 1, 1, 128, 1, 1), 4096, 77)
    assert first.map == b"a" * 128
    assert args[0].packed == CopyParams(out=1, x=2, n=3).packed, "the caller's parameters stay"


def test_other_arguments_can_be_replaced(kernel):
    launch, _ = prepared(kernel)
    launch.launch(1, 2, more=(TensorMap(b"b" * 128),))
    assert kernel.launches[0].map == b"b" * 128


def test_any_parameter_can_have_the_pointers(kernel):
    args = CopyParams(out=1, x=2, n=3), SimpleNamespace(buffer=ctypes.create_string_buffer(b"b" * 128, 128))
    shape = (5, 1, 1), (128, 1, 1), 0
    PreparedLaunch(kernel, shape, args, config=None, pointers=2, parameter=1).launch(10, 20)
    assert kernel.launches[0].params == args[0].packed
    assert kernel.launches[0].map == b"".join(value.to_bytes(8, "little") for value in (10, 20)) + b"b" * 112
    assert args[1].buffer.raw == b"b" * 128


def test_clusters_are_launched_by_their_configuration(kernel):
    config, said = SimpleNamespace(hStream=None), []
    kernel._driver.cuLaunchKernelEx = lambda *rest: said.append((rest[0], rest[0].hStream, rest[1])) or (0,)
    launch, _ = prepared(kernel, config)
    launch.launch(10, 20)
    assert said == [(config, 77, "f")]
    assert not kernel.launches


def test_a_refused_launch_says_which(kernel):
    launch, _ = prepared(kernel)
    kernel._driver.cuLaunchKernel = lambda *args: (_Status(),)
    with pytest.raises(CompileError, match=r"copy.*CUDA_ERROR_INVALID_VALUE"):
        launch.launch(1, 2)


class _Status:
    name = "CUDA_ERROR_INVALID_VALUE"

    def __int__(self):
        return 1
