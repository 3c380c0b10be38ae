"""Time per operator, and the backend that served it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from warploom.core.backends import OPERATORS


@dataclass
class Row:
    """Totals of one operator."""

    calls: int = 0
    seconds: float = 0.0
    backends: set[str] = field(default_factory=set)


class OperatorTimer:
    """Sums up time per label: by CUDA events on a GPU, so that nothing waits for the device; by the clock on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.rows: dict[str, Row] = {}
        self._on_gpu = device.type == "cuda"
        self._pending: list[tuple[Row, torch.cuda.Event, torch.cuda.Event]] = []

    def call(self, function: Callable[..., Any], *args: Any, operator: str = "", **kwargs: Any) -> Any:
        """Call a public function of the library; `operator` is what serves it if it bears another name."""
        name = function.__name__
        with self.measure(name, operators=(operator or name,)):
            return function(*args, **kwargs)

    @contextmanager
    def measure(self, label: str, operators: tuple[str, ...] = (), backend: str = "") -> Iterator[None]:
        """Time a block under `label`. Its backends are what `operators` selected in it, or the given `backend`."""
        row = self.rows.setdefault(label, Row())
        row.calls += 1
        if self._on_gpu:
            events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            events[0].record()
            yield
            events[1].record()
            self._pending.append((row, *events))
        else:
            begun = time.perf_counter()
            yield
            row.seconds += time.perf_counter() - begun
        selections = (OPERATORS[name].last for name in operators)
        row.backends.update(s.name for s in selections if s is not None)
        if backend:
            row.backends.add(backend)

    def collect(self) -> None:
        """Read the events of finished work; call it after a synchronisation."""
        for row, begun, ended in self._pending:
            row.seconds += begun.elapsed_time(ended) / 1e3
        self._pending.clear()

    def reset(self) -> None:
        """Forget all calls so far."""
        self.rows.clear()
        self._pending.clear()

    def table(self, total_seconds: float) -> str:
        """One line per label, longest first, with its share of `total_seconds`."""
        self.collect()
        lines = [f"{'operator':<28} {'calls':>7} {'us/call':>9} {'total ms':>9} {'share':>6}  backend"]
        for label, row in sorted(self.rows.items(), key=lambda item: -item[1].seconds):
            lines.append(
                f"{label:<28} {row.calls:>7} {row.seconds / row.calls * 1e6:>9.1f} {row.seconds * 1e3:>9.1f} "
                f"{row.seconds / total_seconds:>6.1%}  {', '.join(sorted(row.backends))}"
            )
        rest = total_seconds - sum(row.seconds for row in self.rows.values())
        lines.append(f"{'(scheduling, launching)':<28} {'':>7} {'':>9} {rest * 1e3:>9.1f} {rest / total_seconds:>6.1%}")
        return "\n".join(lines)
