"""The batch in one call of torch's flash attention, which aligns causal masks and windows to the bottom right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from warploom.attention.backends.reference.gather import gather_pages
from warploom.attention.backends.reference.ragged import request_of_row
from warploom.attention.backends.reference.rotation import cos_sin, frequencies, rotate
from warploom.attention.plan import AttentionCall, AttentionPlan
from warploom.attention.problems.attention import AttentionProblem

DTYPES = (torch.float16, torch.bfloat16)


def serves(problem: AttentionProblem) -> bool:
    """Whether the flash kernels serve what the backend supports; the rest goes request by request."""
    return problem.device_type == "cuda" and problem.dtype_q in DTYPES and problem.mask == "none"


@dataclass(frozen=True)
class FlashSchedule:
    """Which rows of keys belong to whom.

    Attributes
    ----------
    max_qo_len : int or None
        Longest query; None when only the number of rows bounds it.
    kv_indptr : torch.Tensor or None
        `[batch + 1]` int32 offsets into the rows that `run` gives to the kernel; None for one dense request.
    pages : torch.Tensor or None
        Which pages to gather; None for ragged keys, and for a graph, where `run` reads the tables anew.
    """

    max_qo_len: int | None
    kv_indptr: torch.Tensor | None
    pages: torch.Tensor | None


def schedule(plan: AttentionPlan) -> FlashSchedule:
    tables = plan.tables
    if plan.problem.cuda_graph:
        return FlashSchedule(tables.max_qo_len, None, None)
    host = tables.on_host()
    longest = max(host.qo_lens, default=0)
    if tables.page_indices is None:
        return FlashSchedule(longest, _with_end(tables.kv_indptr, sum(host.kv_lens)), None)
    # Leave out what a padded table or a longer index tensor holds besides the pages in use.
    counts = torch.tensor([-(-length // tables.page_size) for length in host.kv_lens], dtype=torch.int64)
    offsets = F.pad(counts.cumsum(0), (1, 0))
    starts = torch.tensor(host.kv_indptr[:-1], dtype=torch.int64) - offsets[:-1]
    entries = torch.arange(int(offsets[-1])) + starts.repeat_interleave(counts)
    kv_indptr = (offsets * tables.page_size).to(torch.int32).to(tables.device, non_blocking=True)
    return FlashSchedule(longest, kv_indptr, tables.page_indices[entries.to(tables.device, non_blocking=True)])


def attend(problem: AttentionProblem, plan: AttentionPlan, call: AttentionCall) -> tuple[torch.Tensor, torch.Tensor]:
    """Output `[rows, num_qo_heads, head_dim_vo]` and natural LSE `[rows, num_qo_heads]` of the whole batch."""
    k, v, kv_indptr = _rows(plan, call)
    if k.shape[0] == 0 or plan.tables.batch == 0:
        rows, heads = call.q.shape[:2]
        return call.q.new_zeros(rows, heads, problem.head_dim_vo), call.q.new_full((rows, heads), -torch.inf).float()
    q, k, v = call.q, k.to(problem.dtype_q), v.to(problem.dtype_q)
    if problem.pos_encoding == "ROPE_LLAMA":
        q, k = _rotated(plan, q, k, kv_indptr)
    width = max(problem.head_dim_qk, problem.head_dim_vo)  # the kernels want one; columns of zeros change nothing
    q, k, v = (_padded(x, width) for x in (q, k, v))
    out, lse = _kernel(problem, plan, call, q, k, v, kv_indptr)
    lse = torch.where(lse == torch.inf, -torch.inf, lse)  # the kernels' mark of a row without keys
    if problem.cuda_graph:
        padding = torch.arange(q.shape[0], device=q.device) >= plan.tables.qo_indptr[-1]
        out, lse = out.masked_fill(padding.view(-1, 1, 1), 0.0), lse.masked_fill(padding, -torch.inf)
    return out[..., : problem.head_dim_vo], lse.transpose(0, 1)


def _rows(plan: AttentionPlan, call: AttentionCall) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys and values as rows, and where each request's rows start."""
    tables, prepared = plan.tables, plan.schedule
    if tables.page_indices is None:
        kv_indptr = prepared.kv_indptr
        return call.k, call.v, _with_end(tables.kv_indptr, call.k.shape[0]) if kv_indptr is None else kv_indptr
    if prepared.pages is not None:
        return gather_pages(call.k, prepared.pages), gather_pages(call.v, prepared.pages), prepared.kv_indptr
    # Every entry of the captured table, unused ones too (they may hold anything): only lengths change between replays.
    pages = tables.page_indices.clamp(0, max(call.k.shape[0] - 1, 0))
    k, v = gather_pages(call.k, pages), gather_pages(call.v, pages)
    return k, v, _with_end(tables.kv_indptr * tables.page_size, k.shape[0])


def _kernel(
    problem: AttentionProblem,
    plan: AttentionPlan,
    call: AttentionCall,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kv_indptr: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output `[rows, heads, width]` and LSE `[heads, rows]`."""
    options, tables = plan.options, plan.tables
    longest = q.shape[0] if plan.schedule.max_qo_len is None else plan.schedule.max_qo_len
    one_each = problem.phase == "decode" and longest == 1
    extras: dict[str, Any] = {"scale": options.sm_scale * call.logits_scale}
    if problem.sliding_window:
        extras |= {"window_size_left": options.window_left, "window_size_right": 0 if problem.causal else -1}
    causal = problem.causal and not one_each
    forward = torch.ops.aten._flash_attention_forward
    # The kernels give a window without a right end one: as many keys after the query's position as the longest request is said
    # to have. Queries before the first key need more. The dense form would take the request's own number.
    ends_late = problem.sliding_window and not problem.causal
    if tables.batch == 1 and not problem.cuda_graph and not ends_late:
        # The dense form splits long keys over the GPU; the ragged one does so for single queries only.
        host = tables.on_host()
        first = 0 if tables.page_indices is not None else host.kv_indptr[0]
        keys = slice(first, first + host.kv_lens[0])
        dense = [x.unsqueeze(0) for x in (q, k[keys], v[keys])]
        out, lse = forward(*dense, None, None, longest, host.kv_lens[0], 0.0, causal, False, **extras)[:2]
        return out.squeeze(0), lse.squeeze(0)
    # One query takes the kernels' path for single queries, which assumes that every request has exactly one.
    longest = longest if one_each else max(longest, 2)
    out, lse = forward(
        q,
        k,
        v,
        # A replay must not read beyond the captured queries, whatever the offsets have become.
        tables.qo_indptr.clamp(max=q.shape[0]) if problem.cuda_graph else tables.qo_indptr,
        kv_indptr,
        longest,
        k.shape[0] + (longest if ends_late else 0),
        0.0,
        causal,
        False,
        seqused_k=tables.kv_lens,
        **extras,
    )[:2]
    return out, lse


def _rotated(
    plan: AttentionPlan, q: torch.Tensor, k: torch.Tensor, kv_indptr: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    tables, options = plan.tables, plan.options
    freqs = frequencies(q.shape[-1], options.rope_scale, options.rope_theta, q.device)
    request, row = request_of_row(tables.qo_indptr, q.shape[0])
    first = tables.kv_lens - (tables.qo_indptr[1:] - tables.qo_indptr[:-1])
    turned = []
    for x, positions in ((q, first[request.clamp(min=0)] + row), (k, request_of_row(kv_indptr, k.shape[0])[1])):
        cos, sin = cos_sin(positions, freqs)
        turned.append(rotate(x, cos.unsqueeze(1), sin.unsqueeze(1)))
    return turned[0], turned[1]


def _with_end(offsets: torch.Tensor, end: int) -> torch.Tensor:
    """The offsets `[batch + 1]`, with `end` for the last entry."""
    return F.pad(offsets[:-1], (0, 1), value=end).to(torch.int32)


def _padded(x: torch.Tensor, width: int) -> torch.Tensor:
    x = F.pad(x, (0, width - x.shape[-1])) if x.shape[-1] < width else x
    return x if x.stride(-1) == 1 else x.contiguous()
