"""Attention through torch's scaled-dot-product attention: flash on a GPU, one call for the batch; else request by request."""

from __future__ import annotations

from dataclasses import replace

import torch

from warploom.attention.backends.sdpa import by_request, flash
from warploom.attention.options import FP8_DTYPES
from warploom.attention.plan import AttentionBackend, AttentionCall, AttentionPlan
from warploom.attention.problems.attention import AttentionProblem
from warploom.attention.variants.sinks import add_sinks
from warploom.core.backends import Support


class SdpaAttention(AttentionBackend):
    """What users get from torch today, behind this library's semantics.

    The kernels are those of `torch.nn.functional.scaled_dot_product_attention`, called by their aten names because only
    those return the log-sum-exp and take ragged batches.
    """

    name = "sdpa"

    def supports(self, problem: AttentionProblem) -> Support:
        on_gpu = problem.device_type == "cuda"
        dtypes = flash.DTYPES + ((torch.float32,) if on_gpu else (torch.float32, torch.float64))
        same_kv = problem.dtype_kv == problem.dtype_q
        return Support.of(
            (problem.dtype_q in dtypes, f"torch's attention takes no {problem.dtype_q} queries"),
            (same_kv or problem.dtype_kv in FP8_DTYPES,
             f"keys and values must have the dtype of the queries or fp8, not {problem.dtype_kv}"),
            (not problem.soft_cap, "torch's attention has no soft cap of the logits"),
            (problem.pos_encoding != "ALIBI", "torch's attention takes biases only in the dtype of the queries"),
            (not problem.variant, "torch's attention can't run a user's variant"),
            (not (on_gpu and problem.deterministic), "how torch splits long requests depends on the batch around them"),
            (not (on_gpu and problem.cuda_graph) or flash.serves(problem),
             "custom masks and float32 go request by request, from lengths on the host, which a CUDA graph can't capture"),
            (not on_gpu or problem.arch >= 80, "torch's flash attention needs sm_80 or later"),
        )  # fmt: skip

    def note(self, problem: AttentionProblem) -> str:
        how = "pages are gathered into rows, then " if problem.kv_source == "paged" else ""
        if not flash.serves(problem):
            return f"{how}one torch call per request; plan copies the lengths to the host"
        return how + (
            "one flash call for the batch at the captured sizes"
            if problem.cuda_graph
            else "one flash call for the batch; plan copies the lengths to the host unless they came from there"
        )

    def schedule(self, plan: AttentionPlan) -> flash.FlashSchedule | None:
        if flash.serves(plan.problem):
            return flash.schedule(plan)
        plan.tables.on_host()  # here, so that `run` does not synchronise
        return None

    def run(self, problem: AttentionProblem, plan: AttentionPlan, call: AttentionCall) -> None:  # type: ignore[override]
        if call.q.shape[0] == 0:
            return
        if call.logits_scales is not None:  # the kernels take their scale from the host
            scaled = call.q.float() * call.logits_scales.view(1, -1, 1)
            call = replace(call, q=scaled.to(call.q.dtype), logits_scales=None)
        if flash.serves(problem):
            _store(plan, call, slice(None), *flash.attend(problem, plan, call))
            return
        call.out.zero_()
        if call.lse is not None:
            call.lse.fill_(-torch.inf)
        for rows, out, lse in by_request.attend(problem, plan, call):
            _store(plan, call, rows, out, lse)


def _store(plan: AttentionPlan, call: AttentionCall, rows: slice, out: torch.Tensor, lse: torch.Tensor) -> None:
    """Apply what comes after the softmax and write `[rows, heads, d]` and natural `[rows, heads]` to the caller's tensors."""
    if call.sinks is not None:
        out, lse = add_sinks(out.float(), lse, call.sinks)
    if call.value_scale != 1.0:
        out = out.float() * call.value_scale
    if call.value_scales is not None:
        out = out.float() * call.value_scales.view(1, -1, 1)
    call.out[rows].copy_(out)
    if call.lse is not None:
        torch.mul(lse, plan.options.lse_unit, out=call.lse[rows])
