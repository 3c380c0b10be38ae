"""A planned attention, what one call adds to it, and what a backend of attention offers."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import torch

from warploom.attention.options import AttentionOptions
from warploom.attention.plan_explanation import PlanExplanation
from warploom.attention.problems.attention import AttentionProblem
from warploom.attention.schedule import WorkSchedule
from warploom.attention.tables import RequestTables
from warploom.core.backends import OPERATORS, Backend, Selection
from warploom.core.errors import UnsupportedError
from warploom.core.workspace import Workspace, WorkspaceLayout

__all__ = ["AttentionBackend", "AttentionCall", "AttentionPlan", "PreparedCall"]


class PreparedCall(Protocol):
    """A call again, on other tensors of the same shapes, dtypes, strides and alignment, by their addresses.

    The plan is the one that it was prepared for, or another of the same `AttentionPlan.kind`.
    """

    def __call__(self, plan: AttentionPlan, q: int, k: int, v: int, out: int, lse: int) -> None: ...


@dataclass(frozen=True, kw_only=True)
class AttentionCall:
    """The tensors and numbers of one call.

    Attributes
    ----------
    q : torch.Tensor
        `[rows, num_qo_heads, head_dim_qk]`.
    k, v : torch.Tensor
        `[pages, page_size, num_kv_heads, head_dim]`, or `[rows, num_kv_heads, head_dim]` when not paged; any strides.
    out : torch.Tensor
        `[rows, num_qo_heads, head_dim_vo]`, written.
    lse : torch.Tensor or None
        `[rows, num_qo_heads]` float32, written in the base of the options.
    logits_scale, value_scale : float
        `q_scale * k_scale`, which multiplies `sm_scale`, and `v_scale`, which multiplies the output.
    logits_scales, value_scales : torch.Tensor or None
        The same per query head, `[1]` or `[num_qo_heads]` float32, where the caller's scales are tensors; both apply.
    sinks : torch.Tensor or None
        `[num_qo_heads]`.
    extra_tensors, extra_scalars : list
        Arguments of the user's variant.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    out: torch.Tensor
    lse: torch.Tensor | None = None
    logits_scale: float = 1.0
    value_scale: float = 1.0
    logits_scales: torch.Tensor | None = None
    value_scales: torch.Tensor | None = None
    sinks: torch.Tensor | None = None
    extra_tensors: list[torch.Tensor]
    extra_scalars: list[float]


@dataclass(kw_only=True, slots=True)
class AttentionPlan:
    """Everything that is decided before queries come; serves every layer of a step.

    Attributes
    ----------
    op : str
        The public operator, for messages.
    options, problem, tables, selection
        What was asked, its description, where the requests lie, and who serves it.
    backend : str
        What the caller asked for, "auto" included.
    alibi_slopes : torch.Tensor or None
        `[num_qo_heads]` float32.
    scratch : torch.Tensor or None
        The caller's workspace.
    memory : callable
        Where bytes for `state`, and without a caller's workspace for `workspace`, come from.
    workspace : Workspace
        What a run writes and reads. Wrappers whose runs follow one another may share it.
    state : Workspace
        What the plan writes and its runs read.
    schedule : object
        What the backend prepared.
    kind : hashable or None
        Plans of the same kind differ in nothing but their tables' values and where their tensors lie, so that calls
        which are prepared for one serve the others; None if nothing is known of others.
    adapted : dict
        Plans derived from this one for calls that differ from it.
    """

    op: str
    options: AttentionOptions
    problem: AttentionProblem
    tables: RequestTables
    selection: Selection
    backend: str
    alibi_slopes: torch.Tensor | None
    scratch: torch.Tensor | None
    memory: Callable[[int, torch.device], torch.Tensor]
    workspace: Workspace
    state: Workspace
    schedule: Any = None
    kind: Hashable = None
    adapted: dict[Any, AttentionPlan] = field(default_factory=dict, repr=False)

    def explain(self) -> PlanExplanation:
        """The backend table and the work of each request. Copies lengths to the host if they are not there yet."""
        host = self.tables.on_host()
        return PlanExplanation(
            op=self.op,
            backends=OPERATORS["attention"].explain(self.problem, self.backend),
            note=self.server.note(self.problem),
            causal=self.problem.causal,
            lengths=tuple(zip(host.qo_lens, host.kv_lens, strict=True)),
            work=self.server.divided_work(self),
        )

    def plot(self, path: str | Path) -> None:
        """Draw how blocks share the work. Copies lengths to the host if they are not there yet.

        Parameters
        ----------
        path : str or Path
            Where to write; the ending says in which format (``.svg``, ``.png``, ``.pdf``).

        Raises
        ------
        UnsupportedError
            matplotlib is not installed, or the backend does not divide work itself.
        """
        from warploom.attention.schedule_chart import draw_schedule

        work = self.server.divided_work(self)
        if work is None:
            raise UnsupportedError(f"{self.op}: backend {self.server.name!r} does not say how it divides work")
        draw_schedule(work, self.op, path)

    @property
    def server(self) -> AttentionBackend:
        """The backend that serves this plan."""
        return cast("AttentionBackend", self.selection.backend)


class AttentionBackend(Backend):
    """A backend of attention: besides `supports` and `run(problem, plan, call)` it may prepare a plan."""

    def workspace_layout(self, problem: AttentionProblem) -> WorkspaceLayout:
        """Scratch tensors of a run, for any batch and length of the problem; none by default."""
        return WorkspaceLayout("attention")

    def state_layout(self, problem: AttentionProblem, batch: int) -> WorkspaceLayout:
        """Tensors that a plan writes and its runs read; none by default."""
        return WorkspaceLayout("attention")

    def schedule(self, plan: AttentionPlan) -> Any:
        """What `run` needs besides the plan's tensors, made once per plan.

        May write what the tables have `unwritten`, and then says so there; what it leaves is written afterwards.
        """
        return None

    def kind(self, plan: AttentionPlan) -> Hashable:
        """`AttentionPlan.kind`, given the schedule."""
        return None

    def prepare(self, plan: AttentionPlan, call: AttentionCall) -> PreparedCall | None:
        """What `run` does with such a call, in as little host time as can be; None if there is nothing faster.

        Rows of the call's tensors begin at multiples of 16 bytes.
        """
        return None

    def divided_work(self, plan: AttentionPlan) -> WorkSchedule | None:
        """How blocks share the work, as the host sees it; None if this backend does not say."""
        return None

    def note(self, problem: AttentionProblem) -> str:
        """One sentence for `explain` about how this backend serves the problem."""
        return ""

    def run(self, problem: AttentionProblem, plan: AttentionPlan, call: AttentionCall) -> None:  # type: ignore[override]
        raise NotImplementedError
