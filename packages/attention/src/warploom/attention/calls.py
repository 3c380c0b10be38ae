"""From the arguments of one call to the registered operators: scales, outputs, and `torch.ops.warploom.*attention*`."""

from __future__ import annotations

from typing import Any

import torch

from warploom.attention.attention import adapt, execute, make_plan
from warploom.attention.handles import HandleTable
from warploom.attention.options import AttentionOptions
from warploom.attention.plan import AttentionCall, AttentionPlan
from warploom.attention.table_arguments import one_request
from warploom.attention.variants.base import variant_of
from warploom.core.tensors import Checker
from warploom.core.torch_ops import register_op

__all__ = ["PLANNED", "Scale", "attention_run", "combined_scale", "outputs", "planned_call", "single_attention"]

Scale = float | torch.Tensor | None

PLANNED: HandleTable[Any] = HandleTable("wrapper")
"""Wrappers by the number that `attention_run` takes; each has `planned(rows)`, which returns its plan or raises."""


def combined_scale(check: Checker, num_qo_heads: int, **scales: Scale) -> tuple[float, torch.Tensor | None]:
    """The product of scales as a number and, where some are tensors of 1 or `num_qo_heads` elements, a tensor.

    A scale of fewer heads (one per key-value head) is repeated for the query heads of its group.
    """
    number, tensor = 1.0, None
    for name, scale in scales.items():
        if scale is None:
            continue
        if not isinstance(scale, torch.Tensor):
            number *= float(scale)
            continue
        heads = scale.numel()
        fits = heads == 1 or (heads > 0 and num_qo_heads % heads == 0)
        check.require(fits, name, f"of 1 or {num_qo_heads} elements, or one per key-value head", tuple(scale.shape))
        flat = scale.reshape(-1).float()
        if heads not in (1, num_qo_heads):
            flat = flat.repeat_interleave(num_qo_heads // heads)
        tensor = flat if tensor is None else tensor * flat
    return number, tensor


def outputs(
    check: Checker, options: AttentionOptions, rows: int, out: Any, lse: Any, return_lse: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The caller's output tensors, checked, or new ones; no log-sum-exp unless someone wants it."""
    out = check.output("out", out, (rows, options.num_qo_heads, options.head_dim_vo), options.dtype_o)
    if lse is None and not return_lse:
        return out, None
    return out, check.output("lse", lse, (rows, options.num_qo_heads), torch.float32)


def planned_call(
    out: torch.Tensor,
    lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    wrapper: int,
    logits_scale: float,
    value_scale: float,
    logits_scales: torch.Tensor | None,
    value_scales: torch.Tensor | None,
    sinks: torch.Tensor | None,
    window_left: int | None,
    logits_soft_cap: float | None,
    extra_tensors: list[torch.Tensor],
    extra_scalars: list[float],
) -> tuple[AttentionPlan, AttentionCall]:
    """The plan that serves the arguments of `attention_run`, and what they add to it."""
    plan: AttentionPlan = PLANNED[wrapper].planned(q.shape[0])
    changes = {"window_left": window_left, "logits_soft_cap": logits_soft_cap}
    call = AttentionCall(
        q=q, k=k, v=v, out=out, lse=lse, logits_scale=logits_scale, value_scale=value_scale,
        logits_scales=logits_scales, value_scales=value_scales, sinks=sinks,
        extra_tensors=extra_tensors, extra_scalars=extra_scalars,
    )  # fmt: skip
    return adapt(plan, sinks=sinks is not None, device=q.device, **changes), call


@register_op(
    "attention_run(Tensor(a!) out, Tensor(b!)? lse, Tensor q, Tensor k, Tensor v, int wrapper, float logits_scale, "
    "float value_scale, Tensor? logits_scales, Tensor? value_scales, Tensor? sinks, int? window_left, "
    "float? logits_soft_cap, Tensor[] extra_tensors, float[] extra_scalars) -> ()"
)
def attention_run(*arguments: Any) -> None:
    """Run the current plan of a wrapper."""
    execute(*planned_call(*arguments))


@register_op(
    "single_attention(Tensor(a!) out, Tensor(b!)? lse, Tensor q, Tensor k, Tensor v, Tensor? custom_mask, "
    "Tensor? packed_custom_mask, Tensor? sinks, Tensor? alibi_slopes, Tensor? logits_scales, Tensor? value_scales, "
    "Tensor[] extra_tensors, float[] extra_scalars, str op, str phase, str kv_layout, bool causal, str pos_encoding_mode, "
    "float sm_scale, int window_left, float logits_soft_cap, float rope_scale, float rope_theta, float logits_scale, "
    "float value_scale, str lse_base, int variant, str backend) -> ()"
)
def single_attention(
    out: torch.Tensor,
    lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    custom_mask: torch.Tensor | None,
    packed_custom_mask: torch.Tensor | None,
    sinks: torch.Tensor | None,
    alibi_slopes: torch.Tensor | None,
    logits_scales: torch.Tensor | None,
    value_scales: torch.Tensor | None,
    extra_tensors: list[torch.Tensor],
    extra_scalars: list[float],
    op: str,
    phase: str,
    kv_layout: str,
    causal: bool,
    pos_encoding_mode: str,
    sm_scale: float,
    window_left: int,
    logits_soft_cap: float,
    rope_scale: float,
    rope_theta: float,
    logits_scale: float,
    value_scale: float,
    lse_base: str,
    variant: int,
    backend: str,
) -> None:
    """Plan and run attention of one request over contiguous keys `[kv_len, num_kv_heads, head_dim]`."""
    options = AttentionOptions(
        num_qo_heads=q.shape[1], num_kv_heads=k.shape[1], head_dim_qk=q.shape[2], head_dim_vo=v.shape[2],
        kv_layout=kv_layout, dtype_q=q.dtype, dtype_kv=k.dtype, dtype_o=out.dtype, causal=causal, sm_scale=sm_scale,
        window_left=window_left, logits_soft_cap=logits_soft_cap, pos_encoding_mode=pos_encoding_mode,
        rope_scale=rope_scale, rope_theta=rope_theta, lse_base=lse_base, variant=variant_of(variant),
    ).resolve(op)  # fmt: skip
    tables = one_request(q.shape[0], k.shape[0], q.device).with_mask(Checker(op), custom_mask, packed_custom_mask)
    plan = make_plan(
        op, options, tables, phase=phase, kv_source="contiguous", backend=backend, alibi_slopes=alibi_slopes,
        sinks=sinks is not None,
    )  # fmt: skip
    call = AttentionCall(
        q=q, k=k, v=v, out=out, lse=lse, logits_scale=logits_scale, value_scale=value_scale,
        logits_scales=logits_scales, value_scales=value_scales, sinks=sinks,
        extra_tensors=extra_tensors, extra_scalars=extra_scalars,
    )  # fmt: skip
    execute(plan, call)
