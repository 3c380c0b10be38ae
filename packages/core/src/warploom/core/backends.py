"""Backends: who can serve a request, who does, and why.

A `Backend` says of a problem yes, or every reason why not. An `Operator` holds its backends in order of preference;
`select` takes the one that the caller or the settings name, else the best supported one of the tuning table or the
order. `explain` prints the same table that a refusal raises.
"""

from __future__ import annotations

import difflib
import functools
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from warploom.core.errors import ArgumentError, PerformanceWarning, UnsupportedError
from warploom.core.problem import Problem
from warploom.core.settings import settings

__all__ = ["OPERATORS", "Backend", "Explanation", "Operator", "Selection", "Support"]

_CACHED_SELECTIONS = 4096  # per operator; ragged shapes would otherwise grow the table without end


@dataclass(frozen=True)
class Support:
    """Yes, or every reason why not."""

    reasons: tuple[str, ...] = ()

    @classmethod
    def of(cls, *conditions: tuple[Any, str]) -> Support:
        """Collect the reasons of all conditions that do not hold.

        Examples
        --------
        >>> Support.of((True, "needs fp8"), (False, "head_dim 300 is over 256")).reasons
        ('head_dim 300 is over 256',)
        """
        return cls(tuple(reason for holds, reason in conditions if not holds))

    def __bool__(self) -> bool:
        return not self.reasons

    def __and__(self, other: Support) -> Support:
        return Support(self.reasons + other.reasons)


class Backend(ABC):
    """One way to compute an operator.

    Attributes
    ----------
    name : str
        What users pass as ``backend=``.
    needs_gpu : bool
        Refuse CPU tensors.
    min_arch : int
        Lowest compute capability, as `Problem.arch` (80 for sm_80); 0 for any.
    """

    name: ClassVar[str]
    needs_gpu: ClassVar[bool] = False
    min_arch: ClassVar[int] = 0

    @abstractmethod
    def supports(self, problem: Any) -> Support:
        """Yes, or every reason why this backend refuses the problem, besides `needs_gpu` and `min_arch`."""

    @abstractmethod
    def run(self, problem: Any, *args: Any, **kwargs: Any) -> Any:
        """Compute a supported problem into the output tensors among the arguments."""

    def details(self, problem: Any) -> str:
        """How this backend would compute a supported problem, for people: tiles, say."""
        return ""

    def check(self, problem: Problem) -> Support:
        """`supports`, with the reasons of `needs_gpu` and `min_arch` first; those alone when the device is wrong."""
        if self.needs_gpu and problem.device_type != "cuda":
            return Support(("needs tensors on an NVIDIA GPU",))
        if problem.arch < self.min_arch:
            return Support((f"needs sm_{self.min_arch} or later, this is sm_{problem.arch}",))
        return self.supports(problem)


@dataclass(frozen=True)
class Row:
    """One line of the backend table."""

    backend: str
    support: Support
    describe: Callable[[], str] = str  # asked only when the table is read

    @property
    def verdict(self) -> str:
        if not self.support:
            return "no: " + "; ".join(self.support.reasons)
        details = self.describe()
        return f"yes: {details}" if details else "yes"


@dataclass(frozen=True)
class Explanation:
    """The backend table of one request. ``str()`` prints it."""

    operator: str
    problem: Problem
    rows: tuple[Row, ...]
    chosen: str | None
    why: str

    def __str__(self) -> str:
        width = max(len(row.backend) for row in self.rows)
        lines = [f"{self.operator}: {self.problem}"]
        for row in self.rows:
            mark = ">" if row.backend == self.chosen else " "
            lines.append(f" {mark} {row.backend:<{width}}  {row.verdict}")
        lines.append(f"taken: {self.chosen or 'none'} ({self.why})")
        return "\n".join(lines)


@dataclass(frozen=True)
class Selection:
    """The backend that serves a request, and why."""

    backend: Backend
    why: str

    @property
    def name(self) -> str:
        return self.backend.name


OPERATORS: dict[str, Operator] = {}


class Operator:
    """A public operator: its name and its backends, best first.

    Parameters
    ----------
    name : str
        The operator's public name.
    family : str
        Family that owns it, which is also where its tuning tables lie.
    backends : iterable of Backend
        In order of preference; the reference comes last.
    """

    def __init__(self, name: str, *, family: str, backends: Iterable[Backend]) -> None:
        self.name = name
        self.family = family
        self.backends: dict[str, Backend] = {backend.name: backend for backend in backends}
        self.last: Selection | None = None
        self._selections: dict[tuple[Any, str, int, str | None], Selection] = {}
        self._warned = False
        OPERATORS[name] = self

    @property
    def backend_names(self) -> tuple[str, ...]:
        return tuple(self.backends)

    def select(self, problem: Problem, backend: str = "auto") -> Selection:
        """Choose the backend of a problem.

        Parameters
        ----------
        problem : Problem
            The request.
        backend : str
            A backend's name, or "auto".

        Raises
        ------
        ArgumentError
            The operator has no backend of that name.
        UnsupportedError
            The named backend, or with "auto" every backend, refuses; the message is the table.
        """
        key = (problem, backend, settings.version, os.environ.get("WARPLOOM_BACKEND"))
        found = self._selections.get(key)
        if found is None:
            found = self._choose(problem, backend)
            if len(self._selections) >= _CACHED_SELECTIONS:
                self._selections.clear()
            self._selections[key] = found
        self.last = found
        return found

    def explain(self, problem: Problem, backend: str = "auto") -> Explanation:
        """The table that `select` decides by; never raises for a refusal."""
        rows = tuple(
            Row(name, candidate.check(problem), functools.partial(candidate.details, problem))
            for name, candidate in self.backends.items()
        )
        support = {row.backend: row.support for row in rows}
        wanted, origin = self._wanted(backend)
        if wanted != "auto":
            self._known(wanted)
            if support[wanted]:
                return Explanation(self.name, problem, rows, wanted, origin)
            return Explanation(self.name, problem, rows, None, f"{wanted} refuses; {origin}")
        order, why = self._order(problem)
        chosen = next((name for name in order if support[name]), None)
        if chosen is None:
            why = "every backend refuses"
        elif chosen == "reference" and problem.device_type == "cuda":
            why = "no fast backend supports this"
        return Explanation(self.name, problem, rows, chosen, why)

    def _choose(self, problem: Problem, backend: str) -> Selection:
        table = self.explain(problem, backend)
        if table.chosen is None:
            raise UnsupportedError(str(table))
        self._warn_about_reference(table, backend)
        return Selection(self.backends[table.chosen], table.why)

    def _wanted(self, backend: str) -> tuple[str, str]:
        """The name to serve and where it comes from: the argument, or the setting for this operator or for all."""
        if backend != "auto":
            return backend, f"backend={backend!r}"
        by_operator: dict[str, str] = settings.backend
        if self.name in by_operator:
            return by_operator[self.name], "the setting WARPLOOM_BACKEND"
        general = by_operator.get("*", "auto")
        # A name for every operator concerns those that have a backend of that name.
        return (general, "the setting WARPLOOM_BACKEND") if general in self.backends else ("auto", "")

    def _known(self, name: str) -> None:
        if name not in self.backends:
            near = difflib.get_close_matches(name, self.backends, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else ""
            raise ArgumentError.of(
                self.name, "backend", f"'auto' or one of {', '.join(self.backends)}", repr(name), hint
            )

    def _order(self, problem: Problem) -> tuple[list[str], str]:
        names = list(self.backends)
        if problem.device_type == "cuda":
            from warploom.core import tuning

            hit = tuning.lookup(self.family, self.name, problem, problem.device_name)
            if hit is not None:
                measured = [name for name in hit.order if name in self.backends]
                return measured + [name for name in names if name not in measured], f"measured: {hit.source}"
        return names, "first supported in order of preference"

    def _warn_about_reference(self, table: Explanation, backend: str) -> None:
        """On a GPU the reference is right but slow, so `auto` says once that it took it."""
        if table.chosen != "reference" or table.problem.device_type != "cuda" or self._wanted(backend)[0] != "auto":
            return
        if not self._warned:
            self._warned = True
            detail = f"served by its plain torch reference; pass backend='reference' to silence this\n{table}"
            warnings.warn(f"{self.name} is {detail}", PerformanceWarning, stacklevel=6)
