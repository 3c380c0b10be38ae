"""All-reduce with residual, RMSNorm and fp8 quantisation on CPU tensors."""

import pytest
import torch
from comm_oracle import FLOATS, message, messages, spaced

from warploom.comm import AllReduceFusionPattern as Pattern
from warploom.comm import allreduce_fusion, create_allreduce_fusion_workspace
from warploom.core.errors import ArgumentError, UnsupportedError
from warploom.core.testing import assert_close, cases, poison_like, random_normal

pytestmark = pytest.mark.mpi
BACKENDS = ["auto", "mpi", "reference"]
TOKENS, HIDDEN, GROUP = 5, 256, 64
E4M3 = torch.float8_e4m3fn


def workspace_for(world, dtype, backend="auto"):
    return create_allreduce_fusion_workspace(world, max_token_num=8, hidden_dim=HIDDEN, dtype=dtype, backend=backend)


def oracle(world, residual, gamma, dtype, bias=0.0, eps=1e-6):
    """Sum, residual and norm in float64, each rounded to `dtype` before the next step."""
    total = messages(world.size, residual.shape, dtype).double().sum(0).to(dtype)
    added = (total.double() + residual.double()).to(dtype)
    norm = added.double() * torch.rsqrt(added.double().square().mean(-1, keepdim=True) + eps)
    return total, added, norm * (gamma.double() + bias)


def random_inputs(world, dtype, tokens=TOKENS):
    shape = (tokens, HIDDEN)
    return (
        message(world.rank, shape, dtype),
        random_normal(shape, dtype, seed=5),
        random_normal((HIDDEN,), dtype, seed=6),
    )


@pytest.mark.parametrize(*cases(dtype=FLOATS, tokens=[0, 1, TOKENS], backend=BACKENDS, bias=[0.0, 1.0]))
def test_residual_and_norm(world, case):
    x, residual, gamma = random_inputs(world, case.dtype, case.tokens)
    total, added, norm = oracle(world, residual, gamma, case.dtype, case.bias)
    outputs = {name: poison_like(x) for name in ("output", "residual_out", "norm_out")}
    result = allreduce_fusion(
        x, workspace_for(world, case.dtype, case.backend), Pattern.kARResidualRMSNorm,
        residual_in=residual, rms_gamma=gamma, weight_bias=case.bias, **outputs,
    )  # fmt: skip
    assert result is outputs["norm_out"]
    assert_close(outputs["output"], total)
    assert_close(outputs["residual_out"], added)
    assert_close(result, norm, dtype=case.dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_reduce_alone(world, backend):
    x = message(world.rank, (TOKENS, HIDDEN), torch.bfloat16)
    expected = messages(world.size, x.shape, x.dtype).double().sum(0)
    result = allreduce_fusion(x, workspace_for(world, x.dtype), Pattern.kAllReduce, backend=backend)
    assert_close(result, expected, dtype=x.dtype)


def dequantised(codes, scales):
    return (codes.float().unflatten(-1, (scales.shape[-1], -1)) * scales.unsqueeze(-1)).flatten(-2)


@pytest.mark.parametrize(*cases(dtype=FLOATS, kind=["", "Dynamic", "Group"], norm=[False, True], backend=BACKENDS))
def test_quantisation(world, case):
    x, residual, gamma = random_inputs(world, case.dtype)
    _, _, norm = oracle(world, residual, gamma, case.dtype)
    groups = HIDDEN // GROUP if case.kind == "Group" else 1
    scale_out = None if case.kind == "" else torch.full((TOKENS, groups), float("nan"))
    result = allreduce_fusion(
        x, workspace_for(world, case.dtype, case.backend),
        Pattern[f"kARResidualRMSNorm{'Out' if case.norm else ''}{case.kind}FP8Quant"],
        residual_in=residual, rms_gamma=gamma, scale_out=scale_out, scale_factor=torch.tensor([0.02]),
        norm_out=torch.empty_like(x) if case.norm else None, block_quant_group_size=GROUP,
    )  # fmt: skip
    assert result.dtype == E4M3
    scales = torch.full((TOKENS, 1), 0.02) if scale_out is None else scale_out
    if scale_out is not None:
        assert_close(scales, norm.unflatten(-1, (groups, -1)).abs().amax(-1) / 448, dtype=case.dtype)
        assert float(result.float().abs().max()) == 448.0
    assert_close(dequantised(result, scales), norm, dtype=E4M3)


def test_quantisation_clamps_and_survives_zero_rows(world):
    x = torch.zeros(2, HIDDEN)
    residual = torch.zeros(2, HIDDEN)
    residual[1, 0] = 1e4
    arguments = {"residual_in": residual, "rms_gamma": torch.ones(HIDDEN)}
    workspace = workspace_for(world, torch.float32)
    codes = allreduce_fusion(x, workspace, Pattern.kARResidualRMSNormFP8Quant, scale_factor=1e-3, **arguments)
    assert codes.float()[1, 0] == 448.0
    scales = torch.empty(2, 1)
    codes = allreduce_fusion(x, workspace, Pattern.kARResidualRMSNormDynamicFP8Quant, scale_out=scales, **arguments)
    assert codes.float()[0].eq(0).all()
    assert scales.isfinite().all()


def test_in_place_and_strides(world):
    dtype = torch.bfloat16
    x, residual, gamma = random_inputs(world, dtype)
    total, added, norm = oracle(world, residual, gamma, dtype)
    x = spaced(x)
    result = allreduce_fusion(
        x, workspace_for(world, dtype), Pattern.kARResidualRMSNorm, output=x,
        residual_in=residual, residual_out=residual, rms_gamma=gamma,
    )  # fmt: skip
    assert_close(x, total)
    assert_close(residual, added)
    assert_close(result, norm, dtype=dtype)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"pattern": 3}, ArgumentError, "`pattern` must be one of kAllReduce (0)"),
        ({"residual_in": None}, ArgumentError, "`residual_in`"),
        ({"rms_gamma": torch.ones(3)}, ArgumentError, "`rms_gamma`"),
        ({"input": torch.zeros(9, HIDDEN)}, ArgumentError, "`input` must be at most [8, 256]"),
        ({"input": torch.zeros(2, HIDDEN, dtype=torch.float16)}, ArgumentError, "float32, as the workspace is"),
        ({"workspace": None}, ArgumentError, "create_allreduce_fusion_workspace"),
        ({"pattern": Pattern.kARResidualRMSNormDynamicFP8Quant}, ArgumentError, "`scale_out` must be given"),
        ({"pattern": Pattern.kARResidualRMSNormFP8Quant}, ArgumentError, "`scale_factor`"),
        (
            {"pattern": Pattern.kARResidualRMSNormGroupFP8Quant, "block_quant_group_size": 100},
            ArgumentError,
            "a divisor of hidden = 256",
        ),
        ({"use_oneshot": True}, UnsupportedError, "NVIDIA GPU"),
        ({"use_oneshot": False}, UnsupportedError, "twoshot refuses"),
    ],
)
def test_wrong_arguments(world, change, error, text):
    arguments = {
        "input": torch.zeros(2, HIDDEN), "workspace": workspace_for(world, torch.float32),
        "pattern": Pattern.kARResidualRMSNorm, "residual_in": torch.zeros(2, HIDDEN), "rms_gamma": torch.ones(HIDDEN),
    }  # fmt: skip
    with pytest.raises(error) as caught:
        allreduce_fusion(**{**arguments, **change})
    assert text in str(caught.value)


def test_the_workspace_says_what_fits(world):
    workspace = workspace_for(world, torch.bfloat16)
    assert workspace.is_buffer_size_sufficient(world.size, 8, HIDDEN, torch.bfloat16)
    assert not workspace.is_buffer_size_sufficient(world.size, 9, HIDDEN, torch.bfloat16)
    assert not workspace.is_buffer_size_sufficient(world.size, 8, HIDDEN, torch.float16)
    workspace.destroy()
    for change in ({"max_token_num": 0}, {"hidden_dim": -1}, {"dtype": torch.int32}, {"dtype": "float7"}):
        with pytest.raises(ArgumentError, match=next(iter(change))):
            create_allreduce_fusion_workspace(
                world, **{"max_token_num": 8, "hidden_dim": HIDDEN, "dtype": torch.float32, **change}
            )
