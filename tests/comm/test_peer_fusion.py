"""Which fused all-reduces the kernels take, and what is compiled for them: no GPU needed."""

import struct
from dataclasses import replace

import pytest
import torch

from warploom.comm.backends.oneshot.fused import FusedOneShot
from warploom.comm.backends.peer_fusion import fits_kernel, fusion_params, row_support
from warploom.comm.epilogue import FusionTensors
from warploom.comm.problems.fusion import AllReduceFusionPattern, FusionProblem

BF16 = torch.bfloat16
GROUPS = AllReduceFusionPattern.kARResidualRMSNormOutGroupFP8Quant


def problem_of(tokens=3, hidden=1024, dtype=BF16, group=128, size=4):
    return FusionProblem(
        device_type="cuda", arch=90, device_name="a GPU", size=size, nbytes=tokens * hidden * dtype.itemsize,
        dtype=dtype, tokens=tokens, hidden=hidden, pattern=GROUPS, group_size=group,
    )  # fmt: skip


def tensors_of(problem):
    shape, dtype = (problem.tokens, problem.hidden), problem.dtype
    rows = [torch.empty(shape, dtype=dtype) for _ in range(5)]
    return FusionTensors(
        *rows[:4],
        quant_out=torch.empty(shape, dtype=torch.float8_e4m3fn),
        scale_out=torch.empty(shape[0], shape[1] // problem.group_size),
        residual_in=rows[4],
        rms_gamma=torch.empty(shape[1], dtype=dtype),
        scale_factor=None,
        rms_eps=1e-6,
        weight_bias=0.5,
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"hidden": 16384}, ""),
        ({"hidden": 32768}, "rows of up to 32768 bytes, not of 65536"),
        ({"hidden": 1028, "group": 257}, "rows of whole 16 bytes, not of 2056"),
        ({"group": 256}, ""),
        ({"group": 512}, "groups of 16, 32, ... or 512 bytes, not 1024"),
        ({"hidden": 960, "group": 24}, "groups of 16, 32, ... or 512 bytes, not 48"),
        ({"dtype": torch.float32}, ""),
    ],
)
def test_rows_that_the_kernels_take(change, reason):
    reasons = "; ".join(row_support(problem_of(**change)).reasons)
    assert reason in reasons if reason else not reasons


def test_nothing_to_reduce_needs_no_kernel():
    for change in ({"size": 1}, {"tokens": 0}):
        problem = problem_of(**change)
        assert not fits_kernel(problem, tensors_of(problem))


def test_tensors_that_the_kernels_take():
    problem = problem_of()
    tensors = tensors_of(problem)
    odd = torch.empty(3 * 1024 + 1, dtype=BF16)[1:].view(3, 1024)
    strided = torch.empty(3, 2048, dtype=BF16)[:, :1024]
    for name in ("input", "output", "residual_in", "residual_out", "norm_out"):
        for other in (odd, strided):
            assert not fits_kernel(problem, replace(tensors, **{name: other}))
    assert fits_kernel(problem, replace(tensors, output=None, residual_out=None, norm_out=None))
    assert not fits_kernel(problem, replace(tensors, rms_gamma=torch.empty(1024)))
    assert not fits_kernel(problem, replace(tensors, scale_out=torch.empty(8, 3).t()))


def test_what_is_compiled_and_launched():
    problem = problem_of(hidden=8192)
    config = FusedOneShot.spec_of(problem).config
    assert (config["kPackets"], config["kThreads"], config["kGroupPackets"]) == (1024, 512, 16)
    assert config["kNormalises"]
    assert config["kScalesNumber"] == 3
    tensors = tensors_of(problem)
    *pointers, tokens, _, eps, bias = struct.unpack("@8Pqi2f", fusion_params(problem, tensors).packed[:84])
    names = ("input", "output", "residual_in", "residual_out", "rms_gamma", "norm_out", "quant_out", "scale_out")
    assert pointers == [getattr(tensors, name).data_ptr() for name in names]
    assert (tokens, bias) == (3, 0.5)
    assert eps == pytest.approx(1e-6)
    given = replace(tensors, scale_out=None, scale_factor=torch.ones(1))
    assert struct.unpack_from("@P", fusion_params(problem, given).packed, 56) == (given.scale_factor.data_ptr(),)
