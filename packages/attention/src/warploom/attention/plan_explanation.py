"""What `plan.explain()` shows: who serves the plan and the work of each request, as the host sees it."""

from __future__ import annotations

from dataclasses import dataclass

from warploom.attention.schedule import WorkSchedule
from warploom.core.backends import Explanation

__all__ = ["PlanExplanation"]


@dataclass(frozen=True, kw_only=True)
class PlanExplanation:
    """Who serves a plan and what each request costs. ``str()`` prints it.

    Attributes
    ----------
    op : str
        The planned operator.
    backends : Explanation
        The table of backends.
    note : str
        What the chosen backend says about how it serves this.
    causal : bool
        Whether later keys are hidden, which halves the work of a prefill.
    lengths : tuple of pairs
        Queries and keys of each request.
    work : WorkSchedule or None
        How blocks share the work.
    """

    op: str
    backends: Explanation
    note: str
    causal: bool
    lengths: tuple[tuple[int, int], ...]
    work: WorkSchedule | None = None

    @property
    def pairs(self) -> list[int]:
        """Query-key pairs that each request computes per head: its share of the arithmetic."""
        return [_visible_pairs(m, n, self.causal) for m, n in self.lengths]

    def __str__(self) -> str:
        lines = [f"{self.op}, {len(self.lengths)} requests", str(self.backends)]
        if self.note:
            lines.append(f"note: {self.note}")
        if self.work:
            lines += _work_lines(self.work)
        total = max(sum(self.pairs), 1)
        lines.append("request  phase    queries     keys  share of query-key pairs")
        for request, ((m, n), count) in enumerate(zip(self.lengths, self.pairs, strict=True)):
            lines.append(f"{request:>7}  {_phase(m, n):<7}  {m:>7}  {n:>7}  {count / total:7.1%}")
        return "\n".join(lines)


def _work_lines(work: WorkSchedule) -> list[str]:
    shape, units = work.shape, work.total
    return [
        f"work: {shape.lanes * shape.groups} blocks, {shape.lanes} heads at a time; {len(work.units)} items of "
        f"{units} units a head, {work.shared_items} of them shared by several blocks",
        f"balance: the longest block has {work.longest} units, {work.balance:.2f} times the mean",
    ]


def _phase(m: int, n: int) -> str:
    if not m or not n:
        return "empty"
    return "decode" if m == 1 else "append" if m < n else "prefill"


def _visible_pairs(m: int, n: int, causal: bool) -> int:
    """Of `m` queries that are the tail of `n` keys."""
    if not causal:
        return m * n
    rows = min(m, n)  # earlier queries see no key
    return rows * n - rows * (rows - 1) // 2
