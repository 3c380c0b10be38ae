"""`allreduce_fusion`: all-reduce, residual, RMSNorm and fp8 quantisation in one call."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from warploom.comm.backends.mpi.fusion import MpiFusion
from warploom.comm.backends.nccl.fusion import NcclFusion
from warploom.comm.backends.oneshot.fused import FusedOneShot
from warploom.comm.backends.oneshot.fusion import OneShotFusion
from warploom.comm.backends.reference.fusion import ReferenceFusion
from warploom.comm.backends.twoshot.fused import FusedTwoShot
from warploom.comm.backends.twoshot.fusion import TwoShotFusion
from warploom.comm.collective import agree_on, check_comm
from warploom.comm.epilogue import FusionTensors
from warploom.comm.fusion_workspace import FUSION_DTYPES, AllReduceFusionWorkspace
from warploom.comm.handles import find
from warploom.comm.problems.fusion import AllReduceFusionPattern, FusionProblem
from warploom.comm.repeated import keep_call
from warploom.comm.repeated_fusion import RepeatedFusion, fusion_key, scale_tensor
from warploom.core.backends import Operator
from warploom.core.device import device_guard
from warploom.core.tensors import Checker
from warploom.core.torch_ops import register_op

__all__ = ["ALLREDUCE_FUSION", "allreduce_fusion"]

ALLREDUCE_FUSION = Operator(
    "allreduce_fusion",
    family="comm",
    backends=(
        FusedOneShot(),
        FusedTwoShot(),
        OneShotFusion(),
        TwoShotFusion(),
        NcclFusion(),
        MpiFusion(),
        ReferenceFusion(),
    ),
)
_NAME = "allreduce_fusion"
_OUTPUTS = ("output", "residual_out", "norm_out", "quant_out", "scale_out")
_INPUTS = ("residual_in", "rms_gamma", "scale_factor")


def allreduce_fusion(
    input: torch.Tensor,
    workspace: AllReduceFusionWorkspace,
    pattern: int,
    *,
    launch_with_pdl: bool = False,
    output: torch.Tensor | None = None,
    residual_in: torch.Tensor | None = None,
    residual_out: torch.Tensor | None = None,
    norm_out: torch.Tensor | None = None,
    quant_out: torch.Tensor | None = None,
    scale_out: torch.Tensor | None = None,
    rms_gamma: torch.Tensor | None = None,
    rms_eps: float = 1e-6,
    weight_bias: float = 0.0,
    scale_factor: torch.Tensor | float | None = None,
    block_quant_group_size: int = 128,
    use_oneshot: bool | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """All-reduce a tensor and apply what follows it in a transformer block.

    As far as `pattern` goes, each step in float32 and rounded to the dtype of `input` (the last one to float8_e4m3fn)::

        output = all_reduce(input)
        residual_out = output + residual_in
        norm_out = residual_out * rsqrt(mean(residual_out ** 2) + rms_eps) * (rms_gamma + weight_bias)
        quant_out = norm_out / scale

    Parameters
    ----------
    input : torch.Tensor
        ``[tokens, hidden]``, float32, float16 or bfloat16: this rank's part of the sum.
    workspace : AllReduceFusionWorkspace
        From `create_allreduce_fusion_workspace`.
    pattern : AllReduceFusionPattern or int
        Which steps.
    launch_with_pdl : bool
        Taken for callers of other libraries: kernels over peer memory always overlap with their neighbours in the
        stream on GPUs that can (sm_90).
    output, residual_out, norm_out : torch.Tensor, optional
        Receive the results, shaped and typed like `input`. A result that the pattern returns, or must hand on, is
        allocated if it is None: `output` for kAllReduce, `norm_out` or `quant_out` else. `residual_out` may be
        `residual_in`.
    quant_out : torch.Tensor, optional
        float8_e4m3fn ``[tokens, hidden]``.
    scale_out : torch.Tensor, optional
        float32 ``[tokens, 1]`` (Dynamic patterns) or ``[tokens, hidden / block_quant_group_size]`` (Group patterns);
        those patterns need it.
    residual_in, rms_gamma : torch.Tensor
        ``[tokens, hidden]`` like `input`, and ``[hidden]`` of any float dtype; all patterns but kAllReduce need them.
    rms_eps, weight_bias : float
        Added to the mean square, and to the weight (1.0 for Gemma).
    scale_factor : torch.Tensor or float
        The scale of the FP8Quant patterns: one float32. A tensor keeps a CUDA graph free of copies.
    block_quant_group_size : int
        Columns that share a scale, for the Group patterns.
    use_oneshot : bool, optional
        True asks for backend "oneshot", False for "twoshot"; None leaves it to `backend`.
    backend : str, optional
        "auto" or a backend of `all_reduce`, by default the workspace's; "fused_oneshot" and "fused_twoshot" are one
        kernel each for all steps.

    Returns
    -------
    torch.Tensor
        `quant_out`, `norm_out` or `output`: the last step of the pattern.

    Raises
    ------
    ArgumentError
        A tensor is missing or does not fit, or exceeds the workspace.
    UnsupportedError, CommunicationError
        As in `all_reduce`.

    Examples
    --------
    >>> import torch
    >>> from warploom.comm import (
    ...     AllReduceFusionPattern, Communicator, allreduce_fusion, create_allreduce_fusion_workspace)
    >>> comm = Communicator.single("cpu")
    >>> workspace = create_allreduce_fusion_workspace(comm, max_token_num=4, hidden_dim=2, dtype=torch.float32)
    >>> allreduce_fusion(
    ...     torch.tensor([[1.0, 2.0]]), workspace, AllReduceFusionPattern.kARResidualRMSNorm,
    ...     residual_in=torch.tensor([[2.0, 1.0]]), rms_gamma=torch.ones(2))
    tensor([[1.0000, 1.0000]])
    """
    if use_oneshot is not None:
        backend = "oneshot" if use_oneshot else "twoshot"
    scale: Any = scale_factor  # a number becomes a tensor
    given = FusionTensors(
        input=input, output=output, residual_out=residual_out, norm_out=norm_out, quant_out=quant_out, scale_out=scale_out,
        residual_in=residual_in, rms_gamma=rms_gamma, scale_factor=scale, rms_eps=rms_eps, weight_bias=weight_bias,
    )  # fmt: skip
    key = fusion_key(ALLREDUCE_FUSION, workspace, given, pattern, block_quant_group_size, backend)
    known = None if key is None else workspace.comm.repeated.get(key)
    if isinstance(known, RepeatedFusion):
        return known.fuse(workspace.comm, given)
    check = Checker(_NAME)
    input = check.tensor("input", input, "tokens hidden", dtype=FUSION_DTYPES)
    check.require(
        isinstance(workspace, AllReduceFusionWorkspace),
        "workspace",
        "made with create_allreduce_fusion_workspace",
        type(workspace).__name__,
    )
    comm = check_comm(check, workspace.comm)
    steps = _pattern(check, pattern)
    _check_size(check, workspace, input)
    group = _group_size(check, steps, block_quant_group_size)
    arguments = _inputs(check, steps, input, residual_in, rms_gamma, scale_factor)
    outputs = _outputs(check, steps, input, group, output, residual_out, norm_out, quant_out, scale_out)
    backend = backend or workspace.backend
    _run(*outputs, input, *arguments, rms_eps, weight_bias, int(steps), group, comm.handle, backend)
    if key is not None:
        problem = FusionProblem.of(comm, input, steps, group)
        served: dict[str, Any] = dict(zip(_OUTPUTS + _INPUTS, outputs + arguments, strict=True))
        tensors = replace(given, input=input.contiguous(), **served)
        keep_call(key, comm, RepeatedFusion, ALLREDUCE_FUSION, problem, backend, comm, tensors, given)
    return next(tensor for tensor in (outputs[3], outputs[2], outputs[0]) if tensor is not None)


def _pattern(check: Checker, pattern: int) -> AllReduceFusionPattern:
    known = [int(member) for member in AllReduceFusionPattern]
    names = ", ".join(f"{member.name} ({int(member)})" for member in AllReduceFusionPattern)
    check.require(pattern in known, "pattern", f"one of {names}", repr(pattern))
    return AllReduceFusionPattern(pattern)


def _check_size(check: Checker, workspace: AllReduceFusionWorkspace, input: torch.Tensor) -> None:
    tokens, hidden = input.shape
    check.require(
        tokens <= workspace.max_token_num and hidden == workspace.hidden_dim and input.dtype == workspace.dtype,
        "input",
        f"at most [{workspace.max_token_num}, {workspace.hidden_dim}] of {workspace.dtype}, as the workspace is",
        f"{tuple(input.shape)} of {input.dtype}",
    )


def _group_size(check: Checker, steps: AllReduceFusionPattern, group: int) -> int:
    """Columns of a group, 0 where the pattern has no groups."""
    if steps.quantisation != "group":
        return 0
    hidden = check["hidden"]
    check.require(group > 0 and hidden % group == 0, "block_quant_group_size", f"a divisor of hidden = {hidden}", group)
    return group


def _inputs(
    check: Checker, steps: AllReduceFusionPattern, input: torch.Tensor, residual: Any, gamma: Any, scale: Any
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """The residual, the weight and the given scale, as far as the pattern has them."""
    if not steps.normalises:
        return None, None, None
    residual = check.tensor("residual_in", residual, "tokens hidden", dtype=FUSION_DTYPES)
    gamma = check.tensor("rms_gamma", gamma, "hidden", dtype=FUSION_DTYPES)
    if steps.quantisation != "tensor":
        return residual, gamma, None
    if not isinstance(scale, (int, float)):
        scale = check.tensor("scale_factor", scale, "*", dtype=torch.float32)
        check.require(scale.numel() == 1, "scale_factor", "one number", f"shape {tuple(scale.shape)}")
    return residual, gamma, scale_tensor(scale, input.device)


def _outputs(
    check: Checker, steps: AllReduceFusionPattern, input: torch.Tensor, group: int,
    output: Any, residual_out: Any, norm_out: Any, quant_out: Any, scale_out: Any,
) -> tuple[torch.Tensor | None, ...]:  # fmt: skip
    """Output, residual, norm, quantised tensor and scales: checked, or allocated where the pattern must write them."""
    shape, dtype = tuple(input.shape), input.dtype

    def like_input(name: str, value: Any, wanted: bool) -> torch.Tensor | None:
        return check.output(name, value, shape, dtype) if wanted or value is not None else None

    output = like_input("output", output, not steps.normalises)
    if not steps.normalises:
        return output, None, None, None, None
    residual_out = like_input("residual_out", residual_out, False)
    norm_out = like_input("norm_out", norm_out, steps.writes_norm)
    if not steps.quantisation:
        return output, residual_out, norm_out, None, None
    quant_out = check.output("quant_out", quant_out, shape, torch.float8_e4m3fn)
    if steps.quantisation == "tensor":
        return output, residual_out, norm_out, quant_out, None
    tokens, hidden = shape
    check.require(scale_out is not None, "scale_out", "given: the values mean nothing without their scales", None)
    scales = (tokens, hidden // group if group else 1)
    return output, residual_out, norm_out, quant_out, check.output("scale_out", scale_out, scales, torch.float32)


@register_op(
    "allreduce_fusion(Tensor(a!)? output, Tensor(b!)? residual_out, Tensor(c!)? norm_out, Tensor(d!)? quant_out, "
    "Tensor(e!)? scale_out, Tensor input, Tensor? residual_in, Tensor? rms_gamma, Tensor? scale_factor, float rms_eps, "
    "float weight_bias, int pattern, int group_size, int comm, str backend) -> ()"
)
def _run(
    output: torch.Tensor | None, residual_out: torch.Tensor | None, norm_out: torch.Tensor | None,
    quant_out: torch.Tensor | None, scale_out: torch.Tensor | None, input: torch.Tensor,
    residual_in: torch.Tensor | None, rms_gamma: torch.Tensor | None, scale_factor: torch.Tensor | None,
    rms_eps: float, weight_bias: float, pattern: int, group_size: int, comm: int, backend: str,
) -> None:  # fmt: skip
    communicator = find(comm, _NAME)
    problem = FusionProblem.of(communicator, input, AllReduceFusionPattern(pattern), group_size)
    agree_on(
        communicator, _NAME, (pattern, group_size, str(input.dtype), tuple(input.shape), backend), not input.is_cuda
    )
    chosen = ALLREDUCE_FUSION.select(problem, backend).backend
    tensors = FusionTensors(
        input=input.contiguous(), output=output, residual_out=residual_out, norm_out=norm_out, quant_out=quant_out,
        scale_out=scale_out, residual_in=residual_in, rms_gamma=rms_gamma, scale_factor=scale_factor, rms_eps=rms_eps,
        weight_bias=weight_bias,
    )  # fmt: skip
    with device_guard(input):
        chosen.run(problem, communicator, tensors)
