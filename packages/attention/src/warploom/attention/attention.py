"""The one operator behind every wrapper and function of this family: plan a batch, adapt the plan, run it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch

from warploom.attention.backends.cuda.attention import CudaAttention
from warploom.attention.backends.cutlass.attention import CutlassAttention
from warploom.attention.backends.hopper.attention import HopperAttention
from warploom.attention.backends.hopper.decode import HopperDecode
from warploom.attention.backends.reference.attention import ReferenceAttention
from warploom.attention.backends.sdpa.attention import SdpaAttention
from warploom.attention.options import AttentionOptions
from warploom.attention.plan import AttentionBackend, AttentionCall, AttentionPlan
from warploom.attention.problems.attention import AttentionProblem
from warploom.attention.tables import RequestTables
from warploom.attention.variants.alibi import default_slopes
from warploom.core.backends import Operator
from warploom.core.device import device_guard
from warploom.core.errors import ArgumentError, PlanError, UnsupportedError
from warploom.core.problem import Problem
from warploom.core.settings import settings
from warploom.core.workspace import WorkspaceLayout, allocate

__all__ = ["ATTENTION", "adapt", "execute", "make_plan", "workspace_bytes"]


class AttentionOperator(Operator):
    """Takes the fast backends first: on the CPU the reference, as torch's attention saves little there."""

    def _order(self, problem: Problem) -> tuple[list[str], str]:
        names, why = super()._order(problem)
        first: list[str] = []
        if problem.device_type == "cpu":
            first = ["reference"]
        elif isinstance(problem, AttentionProblem) and problem.phase == "prefill":
            # torch's flash attention is faster there than the kernels for sm_80
            first = ["hopper_decode", "hopper", "sdpa"]
        first = [name for name in first if name in names]
        return first + [name for name in names if name not in first], why


ATTENTION = AttentionOperator(
    "attention",
    family="attention",
    backends=(
        HopperDecode(),
        HopperAttention(),
        CudaAttention(),
        SdpaAttention(),
        ReferenceAttention(),
        CutlassAttention(),
    ),
)


def make_plan(
    op: str,
    options: AttentionOptions,
    tables: RequestTables,
    *,
    phase: str,
    kv_source: str,
    backend: str = "auto",
    workspace: torch.Tensor | None = None,
    memory: Callable[[int, torch.device], torch.Tensor] = allocate,
    alibi_slopes: torch.Tensor | None = None,
    sinks: bool = False,
    cuda_graph: bool = False,
) -> AttentionPlan:
    """Describe, select and schedule attention over requests whose arguments are checked.

    `options` are resolved, `tables` are valid and lie on the device of the queries. `memory` gives the bytes of what the
    plan writes: each plan its own, so that callers may share a workspace, unless a captured graph goes on using them.
    Raises `UnsupportedError` with the backend table, and `ArgumentError` for an unknown backend or a workspace that is too
    small.
    """
    device = tables.device
    problem = options.problem(
        phase, kv_source, device, mask=tables.mask_kind, sinks=sinks, cuda_graph=cuda_graph, longest=tables.max_qo_len
    )
    selection = ATTENTION.select(problem, backend)
    if problem.pos_encoding == "ALIBI" and alibi_slopes is None:
        alibi_slopes = torch.tensor(default_slopes(problem.num_qo_heads), dtype=torch.float32, device=device)
    server = cast(AttentionBackend, selection.backend)
    scratch, state = _layouts(server, problem, tables.batch)
    buffer = memory(state.nbytes + (scratch.nbytes if workspace is None else 0), device)
    plan = AttentionPlan(
        op=op,
        options=options,
        problem=problem,
        tables=tables,
        selection=selection,
        backend=backend,
        alibi_slopes=alibi_slopes,
        scratch=workspace,
        memory=memory,
        workspace=scratch.at(buffer, state.nbytes) if workspace is None else scratch.bind(workspace, device),
        state=state.at(buffer),
    )
    with device_guard(tables.kv_lens):
        plan.schedule = server.schedule(plan)
        tables.complete()
    plan.kind = server.kind(plan)
    return plan


@functools.lru_cache(maxsize=1024)
def _layouts(
    server: AttentionBackend, problem: AttentionProblem, batch: int
) -> tuple[WorkspaceLayout, WorkspaceLayout]:
    """Of what a run and of what a plan of so many requests writes."""
    return server.workspace_layout(problem), server.state_layout(problem, batch)


def adapt(
    plan: AttentionPlan, *, sinks: bool | None = None, device: torch.device | None = None, **options: Any
) -> AttentionPlan:
    """The plan for a call that differs from it: other scalars, with or without sinks, or on another device."""
    changed = plan.options.override(plan.op, **options)
    problem = plan.problem
    sinks = problem.sinks if sinks is None else sinks
    device = device or plan.tables.device
    if changed == plan.options and sinks == problem.sinks and device == plan.tables.device:
        return plan
    if problem.cuda_graph and device != plan.tables.device:
        raise PlanError(
            f"{plan.op}: the tables of graph mode are on {plan.tables.device}, the queries on {device}; give the wrapper "
            "a workspace, buffers or `device=` there"
        )
    key = (changed, sinks, device)
    if key not in plan.adapted:
        plan.adapted[key] = make_plan(
            plan.op,
            changed,
            plan.tables.to(device),
            phase=problem.phase,
            kv_source=problem.kv_source,
            backend=plan.backend,
            workspace=plan.scratch,
            memory=plan.memory,
            alibi_slopes=None if plan.alibi_slopes is None else plan.alibi_slopes.to(device),
            sinks=sinks,
            cuda_graph=problem.cuda_graph,
        )
    return plan.adapted[key]


def execute(plan: AttentionPlan, call: AttentionCall) -> None:
    """Run a plan on tensors whose shapes and dtypes are checked."""
    _check_rows(plan, call.q.shape[0])
    if settings.debug_checks or not call.q.is_cuda:
        _check_places(plan, call)
    with device_guard(call.q):
        plan.server.run(plan.problem, plan, call)


def _check_rows(plan: AttentionPlan, rows: int) -> None:
    """Raise unless the queries are as many as planned; a graph's are as many as its largest batch has."""
    tables = plan.tables
    planned = tables.known_rows
    if plan.problem.cuda_graph:
        if tables.max_qo_len is not None and rows != tables.batch * tables.max_qo_len:
            raise PlanError(
                f"{plan.op}: graph mode needs queries for the largest batch, {tables.batch} requests of "
                f"{tables.max_qo_len}, got {rows} rows; pad them"
            )
        if planned is not None and rows < planned:
            raise PlanError(f"{plan.op}: {planned} rows are planned, got {rows}")
    elif planned is not None and rows != planned:
        raise ArgumentError.of(plan.op, "q", f"of {planned} rows, as planned", f"{rows} rows")


def _check_places(plan: AttentionPlan, call: AttentionCall) -> None:
    """Raise unless every page exists, or every row of ragged keys. Synchronises with the GPU."""
    tables = plan.tables
    if tables.page_indices is not None:
        low, high = tables.page_range()
        if low < 0 or high >= call.k.shape[0]:
            wrong = low if low < 0 else high
            raise ArgumentError.of(plan.op, "kv_indices", f"page indices from 0 to {call.k.shape[0] - 1}", wrong)
        return
    host = tables.on_host()
    end = max((start + length for start, length in zip(host.kv_indptr, host.kv_lens, strict=False)), default=0)
    if end > call.k.shape[0]:
        raise ArgumentError.of(plan.op, "k", f"of at least {end} rows, as planned", f"{call.k.shape[0]} rows")


def workspace_bytes(problem: AttentionProblem, backend: str) -> int:
    """Size of the workspace for any batch and lengths of this problem.

    Raises
    ------
    UnsupportedError
        The backend serves it neither with few rows of queries nor with many.
    """
    sizes, refusal = [], None
    for few_rows in (False, True):
        of_lengths = replace(problem, few_rows=few_rows)
        try:
            server = cast(AttentionBackend, ATTENTION.select(of_lengths, backend).backend)
        except UnsupportedError as error:
            refusal = error
        else:
            sizes.append(server.workspace_layout(of_lengths).nbytes)
    if refusal and not sizes:
        raise refusal
    return max(sizes)
