"""What all planned wrappers share: a plan that every layer of a step reuses, and the run of one layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from warploom.attention.attention import make_plan, workspace_bytes
from warploom.attention.calls import PLANNED, Scale, attention_run, combined_scale, outputs, planned_call
from warploom.attention.graph_tables import GraphTables
from warploom.attention.options import AttentionOptions
from warploom.attention.paged_cache import unpack_paged_kv_cache
from warploom.attention.plan import AttentionPlan
from warploom.attention.plan_explanation import PlanExplanation
from warploom.attention.repeated_runs import RepeatedRuns
from warploom.attention.tables import RequestTables
from warploom.attention.variants.base import AttentionVariant
from warploom.core.errors import ArgumentError, PlanError
from warploom.core.settings import settings
from warploom.core.tensors import Checker, as_tensor
from warploom.core.workspace import allocate

__all__ = ["PlannedAttention"]


class PlannedAttention:
    """Base of the wrappers: holds one plan, checks the tensors of each run, and calls the registered operator.

    Parameters
    ----------
    workspace : uint8 tensor, optional
        Scratch memory of the caller, at least `workspace_size` bytes; None allocates what a plan needs.
    kv_layout : {"NHD", "HND"}
        Layout of the caches that `run` takes.
    backend : str
        Backend of every plan.
    variant : AttentionVariant, optional
        Variant of every plan that names no other.
    device : torch.device, optional
        Where the queries will be; by default that of the workspace, else that of the first tensor of `plan`.
    graph_buffers : dict, optional
        Turns on CUDA-graph mode; holds the caller's buffers by name (see `GraphTables`).
    """

    def __init__(
        self,
        workspace: Any = None,
        kv_layout: str = "NHD",
        *,
        backend: str = "auto",
        variant: AttentionVariant | None = None,
        device: torch.device | str | None = None,
        graph_buffers: dict[str, torch.Tensor | None] | None = None,
    ) -> None:
        self._op = type(self).__name__
        self._plan_op, self._run_op = f"{self._op}.plan", f"{self._op}.run"
        if kv_layout not in ("NHD", "HND"):
            raise ArgumentError.of(self._op, "kv_layout", "'NHD' or 'HND'", repr(kv_layout))
        if variant is not None and not isinstance(variant, AttentionVariant):
            raise ArgumentError.of(self._op, "jit_args", "an AttentionVariant", type(variant).__name__)
        self._workspace = None if workspace is None else as_tensor(workspace, self._op, "workspace")
        self._kv_layout = kv_layout
        self._backend = backend
        self._variant = variant
        where = self._workspace.device if device is None and self._workspace is not None else device
        self._device = None if where is None else torch.empty(0, device=where).device  # cuda becomes cuda:0
        self._graph = None if graph_buffers is None else GraphTables(self._op, graph_buffers)
        self._plan: AttentionPlan | None = None
        self._sinks: torch.Tensor | None = None
        self._runs = RepeatedRuns()
        self._handle = PLANNED.add(self)

    def planned(self, rows: int | None = None) -> AttentionPlan:
        """The current plan, for a run with so many rows of queries.

        Raises
        ------
        PlanError
            `plan` has not been called.
        """
        if self._plan is None:
            raise PlanError(f"{self._op}: call plan(...) before run(...)")
        if self._graph is not None and rows is not None:
            self._graph.seen_rows(rows)
        return self._plan

    @property
    def is_planned(self) -> bool:
        """Whether `plan` has been called."""
        return self._plan is not None

    @property
    def is_cuda_graph_enabled(self) -> bool:
        """Whether plans go into fixed tensors, for `run` inside a CUDA graph."""
        return self._graph is not None

    def reset_workspace_buffer(self, float_workspace_buffer: Any, int_workspace_buffer: Any = None) -> None:
        """Take another workspace for later plans; the second buffer of other libraries is not needed."""
        self._workspace = as_tensor(float_workspace_buffer, self._op, "float_workspace_buffer")
        self._device = self._workspace.device

    def explain(self) -> PlanExplanation:
        """The backend table and the work of each request of the current plan."""
        return self.planned().explain()

    def plot(self, path: str | Path) -> None:
        """Draw how the current plan divides work among blocks; needs matplotlib. `path` ends in .svg, .png or .pdf."""
        self.planned().plot(path)

    def _workspace_bytes(self, options: AttentionOptions, phase: str, kv_source: str) -> int:
        at = self._device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        problem = options.resolve(self._op).problem(phase, kv_source, at, cuda_graph=self.is_cuda_graph_enabled)
        return workspace_bytes(problem, self._backend)

    def _set_plan(
        self,
        options: AttentionOptions,
        tables: RequestTables,
        *,
        phase: str,
        kv_source: str,
        alibi_slopes: Any = None,
        sinks: torch.Tensor | None = None,
    ) -> None:
        pages, is_checked = tables.page_indices, settings.debug_checks
        home = tables.device if pages is None or tables.device.type == "cuda" else pages.device
        device = self._device or home
        if is_checked or tables.device.type == "cpu":  # where it is free
            tables.validate(self._plan_op)
        if tables.device != device or (pages is not None and pages.device != device):
            tables = tables.to(device)
        if alibi_slopes is not None:
            check = Checker(self._plan_op)
            alibi_slopes = check.tensor("alibi_slopes", alibi_slopes, "_", dtype=torch.float32, device="any").to(device)
        if self._graph is not None:
            tables = self._graph.load(tables)
        self._sinks = None if sinks is None else sinks.to(device)
        self._plan = make_plan(
            self._plan_op,
            options,
            tables,
            phase=phase,
            kv_source=kv_source,
            backend=self._backend,
            workspace=self._workspace,
            memory=allocate if self._graph is None else self._graph.memory,
            alibi_slopes=alibi_slopes,
            sinks=sinks is not None,
            cuda_graph=self.is_cuda_graph_enabled,
        )
        self._runs.follow(self._plan, is_checked)

    def _options(self, variant: AttentionVariant | None, **choices: Any) -> AttentionOptions:
        choices["kv_layout"] = self._kv_layout
        choices["variant"] = self._variant if variant is None else variant
        return AttentionOptions.resolved(self._plan_op, choices)

    def _checker(self) -> Checker:
        """A checker of `run` that knows the sizes of the plan."""
        options = self.planned().options
        check = Checker(self._run_op)
        for name in ("num_qo_heads", "num_kv_heads", "head_dim_qk", "head_dim_vo"):
            check.bind(name, getattr(options, name), "the plan")
        return check

    def _check_kv(self, check: Checker, kv: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Check what `run` was given for keys and values; views of it with heads before the head dimension."""
        options = self.planned().options
        planned = {
            "page_size": options.page_size, "head_dim": options.head_dim_qk, "value_dim": options.head_dim_vo,
        }  # fmt: skip
        for name, size in planned.items():
            check.bind(name, size, "the plan")
        return unpack_paged_kv_cache(check, kv, self._kv_layout)

    def _run(
        self,
        q: Any,
        kv: Any,
        *,
        args: tuple[Any, ...] = (),
        q_scale: Scale = None,
        k_scale: Scale = None,
        v_scale: Scale = None,
        out: Any = None,
        lse: Any = None,
        return_lse: bool = False,
        sinks: Any = None,
        window_left: int | None = None,
        logits_soft_cap: float | None = None,
    ) -> Any:
        """Run one layer."""
        key = None
        if sinks is None and not args:
            key = self._runs.key(q, kv, out, lse, q_scale, k_scale, v_scale, return_lse, window_left, logits_soft_cap)
            known = self._runs.repeat(key, q, kv, out, lse)
            if known is not None:
                return known
        check = self._checker()
        options = self.planned().options
        q = check.tensor("q", q, "rows num_qo_heads head_dim_qk", dtype=options.dtype_q)
        k, v = self._check_kv(check, kv)
        check.require(k.dtype == options.dtype_kv, "kv cache", f"of dtype {options.dtype_kv} as planned", k.dtype)
        out, lse = outputs(check, options, q.shape[0], out, lse, return_lse)
        sinks = self._sinks if sinks is None else check.tensor("sinks", sinks, "num_qo_heads")
        variant = options.variant
        check.require(variant is not None or not args, "args", "none, since the plan has no variant", f"{len(args)}")
        extra_tensors, extra_scalars = ([], []) if variant is None else variant.bind(check.op, args)
        logits_scale, logits_scales = combined_scale(check, options.num_qo_heads, q_scale=q_scale, k_scale=k_scale)
        value_scale, value_scales = combined_scale(check, options.num_qo_heads, v_scale=v_scale)
        arguments = (
            out, lse, q, k, v, self._handle, logits_scale, value_scale, logits_scales, value_scales, sinks,
            window_left, logits_soft_cap, extra_tensors, extra_scalars,
        )  # fmt: skip
        attention_run(*arguments)
        if key is not None:
            self._runs.remember(key, *planned_call(*arguments), kv, return_lse)
        return (out, lse) if return_lse else out
