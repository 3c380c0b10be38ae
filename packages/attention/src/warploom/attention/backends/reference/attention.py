"""Attention in plain torch, request by request: the oracle of the tests, and what runs without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from warploom.attention.backends.reference.gather import request_keys_values
from warploom.attention.plan import AttentionBackend, AttentionCall, AttentionPlan
from warploom.attention.problems.attention import AttentionProblem
from warploom.attention.variants import BUILTIN_VARIANTS, LogitsContext
from warploom.core.backends import Support

_LOGITS_AT_ONCE = 1 << 26  # elements; longer prefills go by blocks of rows


class ReferenceAttention(AttentionBackend):
    """Every semantics, on any device, accumulated in float32 (in float64 for float64 queries)."""

    name = "reference"

    def supports(self, problem: AttentionProblem) -> Support:
        return Support.of((not problem.cuda_graph or problem.device_type == "cpu",
                           "copies lengths to the host, which a CUDA graph can't capture"))  # fmt: skip

    def run(self, problem: AttentionProblem, plan: AttentionPlan, call: AttentionCall) -> None:  # type: ignore[override]
        call.out.zero_()
        if call.lse is not None:
            call.lse.fill_(-torch.inf)
        host = plan.tables.on_host()
        for request, (start, rows) in enumerate(zip(host.qo_starts, host.qo_lens, strict=True)):
            if rows == 0 or host.kv_lens[request] == 0:
                continue
            mine = slice(start, start + rows)
            for block, out, lse in _attend(problem, plan, call, request, call.q[mine]):
                call.out[mine][block] = out
                if call.lse is not None:
                    call.lse[mine][block] = lse * plan.options.lse_unit


def _attend(
    problem: AttentionProblem, plan: AttentionPlan, call: AttentionCall, request: int, q: torch.Tensor
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """Output `[rows, num_qo_heads, head_dim_vo]` and natural LSE `[rows, num_qo_heads]` by blocks of rows."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    k, v = request_keys_values(plan, call, request)
    q, k, v = q.to(wide), k.to(wide), v.to(wide)
    rows, kv_len = q.shape[0], k.shape[0]
    variants = _active_variants(problem, plan, call, request)

    def context(block: range) -> LogitsContext:
        return LogitsContext(request, block, rows, kv_len, problem.num_qo_heads, problem.group_size, q.device)

    for variant, names in variants:
        if getattr(variant, "reference_inputs", None):
            q, k = variant.reference_inputs(q, k, context(range(rows)).with_names(names))
    step = max(1, _LOGITS_AT_ONCE // (problem.num_qo_heads * kv_len))
    for first in range(0, rows, step):
        block = range(first, min(first + step, rows))
        at = context(block)
        logits = _dot(q[first : block.stop], k) * _logits_scale(plan, call, wide)
        logits, visible = _masked_logits(logits, variants, at)
        out, lse = _softmax_product(logits, visible, v)
        for variant, names in variants:
            if getattr(variant, "reference_output", None):
                out, lse = variant.reference_output(out, lse, at.with_names(names))
        if call.value_scales is not None:
            out = out * call.value_scales.to(wide).view(1, -1, 1)
        yield slice(first, block.stop), out * call.value_scale, lse


def _active_variants(problem: AttentionProblem, plan: AttentionPlan, call: AttentionCall, request: int) -> list[Any]:
    """The variants in force with their tensors and scalars, in the order in which they apply."""
    found: list[Any] = [(each, each.values(plan, call, request)) for each in BUILTIN_VARIANTS if each.active(problem)]
    mine = plan.options.variant
    if mine is not None:
        found.append((mine, mine.named(call.extra_tensors, call.extra_scalars)))
    return found


def _logits_scale(plan: AttentionPlan, call: AttentionCall, wide: torch.dtype) -> Any:
    scale = plan.options.sm_scale * call.logits_scale
    return scale if call.logits_scales is None else scale * call.logits_scales.to(wide).view(-1, 1, 1)


def _dot(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """`[num_qo_heads, rows, kv_len]` of `[rows, num_qo_heads, d]` and `[kv_len, num_kv_heads, d]`."""
    grouped = q.transpose(0, 1).unflatten(0, (k.shape[1], -1))  # [num_kv_heads, group, rows, d]
    return torch.matmul(grouped, k.permute(1, 2, 0).unsqueeze(1)).flatten(0, 1)


def _masked_logits(
    logits: torch.Tensor, variants: list[Any], at: LogitsContext
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Apply every variant's logits, then hide what any mask hides."""
    visible = None
    for variant, names in variants:
        if variant.reference_logits is not None:
            logits = variant.reference_logits(logits, at.with_names(names))
        if variant.reference_mask is not None:
            mask = variant.reference_mask(at.with_names(names))
            visible = mask if visible is None else visible & mask
    if visible is not None:
        visible = visible.expand_as(logits)
        logits = logits.masked_fill(~visible, -torch.inf)
    return logits, visible


def _softmax_product(
    logits: torch.Tensor, visible: torch.Tensor | None, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax over keys times values; a row without keys gives 0 and -inf."""
    peak = logits.amax(-1, keepdim=True)
    peak = torch.where(peak == -torch.inf, 0.0, peak)
    weights = (logits - peak).exp()
    total = weights.sum(-1, keepdim=True)
    lse = (total.log() + peak).squeeze(-1)
    out = _weighted_values(weights, visible, v) / torch.where(total == 0, 1.0, total)
    return out.transpose(0, 1), lse.transpose(0, 1)


def _weighted_values(weights: torch.Tensor, visible: torch.Tensor | None, v: torch.Tensor) -> torch.Tensor:
    """`[num_qo_heads, rows, d]`, in which a hidden key leaves no trace: 0 * NaN would be NaN."""
    values = v.transpose(0, 1)  # [num_kv_heads, kv_len, d]
    grouped = weights.unflatten(0, (values.shape[0], -1))  # [num_kv_heads, group, rows, kv_len]
    if visible is None or bool(torch.isfinite(v).all()):
        return torch.matmul(grouped, values.unsqueeze(1)).flatten(0, 1)
    strange = ~torch.isfinite(v).flatten(1).all(1)  # [kv_len]
    out = torch.matmul(grouped, values.masked_fill(strange.view(1, -1, 1), 0.0).unsqueeze(1)).flatten(0, 1)
    group = grouped.shape[1]
    for key in strange.nonzero().flatten().tolist():
        one = values[:, key].repeat_interleave(group, 0).unsqueeze(1)  # [num_qo_heads, 1, d]
        out = out + torch.where(visible[..., key, None], weights[..., key, None] * one, 0.0)
    return out
