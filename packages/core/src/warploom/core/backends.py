"""Backends: who can serve a request, who does, and why.

A `Backend` says of a problem yes, or every reason why not. An `Operator` holds its backends in order of preference;
`select` takes the one that the caller or the settings name, else the best supported one of the tuning table or the
order; `call` selects and runs. `explain` prints the same table that a refusal raises.
"""

from __future__ import annotations

import difflib
import functools
import os
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from warploom.core.calls import Kept, layout_key
from warploom.core.device import device_guard
from warploom.core.errors import ArgumentError, PerformanceWarning, UnsupportedError
from warploom.core.problem import Problem
from warploom.core.settings import settings

__all__ = ["OPERATORS", "Backend", "Explanation", "Operator", "Selection", "Support"]

_MOST_SELECTIONS = 4096  # of an operator; ragged shapes would otherwise make ever more
_OWN_FRAMES = ("warploom", "torch")  # torch's dispatcher is between the two


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

    def bind(self, problem: Any, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        """`run` for this problem and any tensors that lie as those among the arguments do.

        What is returned is kept, so it must not keep the tensors.
        """
        return functools.partial(self.run, problem)

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


def _choice_key(backend: str) -> tuple[str, int, str | None]:
    """All that the choice of a backend depends on besides the problem."""
    return backend, settings.version, os.environ.get("WARPLOOM_BACKEND")


def _level_of_caller() -> int:
    """The ``stacklevel`` for a warning of the calling function that shows the user's line."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _OWN_FRAMES:
        frame, level = frame.f_back, level + 1
    return level


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
        self.generation = 0  # counts `forget`; what is kept elsewhere of calls compares it
        self._selections: Kept[Any, Selection] = Kept(_MOST_SELECTIONS)
        self._calls: Kept[Any, tuple[Selection, Callable[..., Any]]] = Kept(_MOST_SELECTIONS)
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
        key = (problem, *_choice_key(backend))
        found = self._selections.get(key)
        if found is None:
            found = self._selections.keep(key, self._choose(problem, backend))
        self.last = found
        return found

    def call(
        self,
        describe: Callable[..., Problem],
        backend: str,
        tensors: tuple[torch.Tensor | None, ...],
        options: tuple[Any, ...] = (),
        values: tuple[Any, ...] = (),
    ) -> Any:
        """Serve a request: describe it, select its backend and run that, or repeat a call that lay alike.

        Parameters
        ----------
        describe : callable
            Makes the problem of ``(*tensors, *options)``, from nothing but what `layout_key` tells of them.
        backend : str
            As in `select`.
        tensors : tuple of Tensor or None
            What the backend's `run` takes after the problem. The first that is one tells the device.
        options : tuple
            Plain values, or tuples of them, that the problem depends on besides.
        values : tuple
            What `run` takes after the tensors, and the problem does not depend on.

        Returns
        -------
        object
            What `run` returns.

        Raises
        ------
        ArgumentError, UnsupportedError
            As `select`.
        """
        layout = layout_key(*tensors, *options, aligned=True)
        key = (layout, *_choice_key(backend))
        known = None if layout is None else self._calls.get(key)
        with device_guard(next(tensor for tensor in tensors if tensor is not None)):
            if known is None:
                problem = describe(*tensors, *options)
                selection = self.select(problem, backend)
                known = selection, selection.backend.bind(problem, *tensors)
                if layout is not None:
                    self._calls.keep(key, known)
            self.last, run = known
            return run(*tensors, *values)

    def forget(self) -> None:
        """Describe, select and prepare all calls anew."""
        self.generation += 1
        self._selections.clear()
        self._calls.clear()

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
            warnings.warn(f"{self.name} is {detail}", PerformanceWarning, stacklevel=_level_of_caller())
