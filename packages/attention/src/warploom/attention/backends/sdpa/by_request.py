"""One torch call per request: on the CPU, and on a GPU for custom masks and float32."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from warploom.attention.backends.reference.gather import request_keys_values
from warploom.attention.plan import AttentionCall, AttentionPlan
from warploom.attention.problems.attention import AttentionProblem
from warploom.attention.variants import BUILTIN_VARIANTS, LogitsContext

_BIAS_ROW_ALIGNMENT = 16  # elements; the GPU kernel loads rows of the bias in vectors


def attend(
    problem: AttentionProblem, plan: AttentionPlan, call: AttentionCall
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """Rows, output `[rows, num_qo_heads, head_dim_vo]` and natural LSE `[rows, num_qo_heads]` of each request with keys."""
    host = plan.tables.on_host()
    width = max(problem.head_dim_qk, problem.head_dim_vo)  # the kernels want one; columns of zeros change nothing
    for request, (start, rows) in enumerate(zip(host.qo_starts, host.qo_lens, strict=True)):
        kv_len = host.kv_lens[request]
        if rows == 0 or kv_len == 0:
            continue
        mine = slice(start, start + rows)
        at = LogitsContext(request, range(rows), rows, kv_len, problem.num_qo_heads, problem.group_size, call.q.device)
        q = call.q[mine]
        k, v = (x.to(problem.dtype_q) for x in request_keys_values(plan, call, request))
        visible = None
        for variant in BUILTIN_VARIANTS:
            if not variant.active(problem):
                continue
            named = at.with_names(variant.values(plan, call, request))
            if variant.reference_inputs is not None:
                q, k = variant.reference_inputs(q, k, named)
            if variant.reference_mask is not None and not _sees_all(variant.name, rows):
                mask = variant.reference_mask(named)
                visible = mask if visible is None else visible & mask
        q, k, v = (
            _heads_first(x, copies, width) for x, copies in ((q, 1), (k, problem.group_size), (v, problem.group_size))
        )
        out, lse = _kernel(q, k, v, visible, plan.options.sm_scale * call.logits_scale)
        yield mine, out[0, ..., : problem.head_dim_vo].transpose(0, 1), lse[0].transpose(0, 1)


def _sees_all(variant: str, rows: int) -> bool:
    """A single query is the last position, which the causal mask hides nothing from."""
    return variant == "causal" and rows == 1


def _heads_first(x: torch.Tensor, copies: int, width: int) -> torch.Tensor:
    """`[1, heads * copies, rows, width]`, each key-value head repeated for its group of query heads."""
    x = x.transpose(0, 1).repeat_interleave(copies, 0) if copies > 1 else x.transpose(0, 1)
    return F.pad(x, (0, width - x.shape[-1])).contiguous().unsqueeze(0)


def _kernel(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output `[1, heads, rows, width]` and LSE `[1, heads, rows]`."""
    bias = None if visible is None else _bias(visible, q)
    if q.is_cuda:
        bias = None if bias is None else bias.expand(1, q.shape[1], -1, -1)
        out, lse = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, True, 0.0, False, scale=scale)[
            :2
        ]
        lse = lse[..., : q.shape[2]]
    else:
        cpu_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, lse = cpu_kernel(q, k, v, 0.0, False, attn_mask=bias, scale=scale)
    if visible is not None:
        seen = visible.any(-1)  # [rows]; the kernels leave rows without keys undefined
        out, lse = torch.where(seen.unsqueeze(-1), out, 0.0), torch.where(seen, lse, -torch.inf)
    return out, lse


def _bias(visible: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """`[1, 1, rows, kv_len]` with 0 for visible keys and -inf for hidden ones, in the dtype of the queries."""
    rows, kv_len = visible.shape
    padded = -(-kv_len // _BIAS_ROW_ALIGNMENT) * _BIAS_ROW_ALIGNMENT
    bias = torch.zeros(rows, padded, dtype=q.dtype, device=q.device)[:, :kv_len]
    return bias.masked_fill_(~visible, -torch.inf).view(1, 1, rows, kv_len)
