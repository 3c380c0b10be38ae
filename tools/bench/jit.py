"""Compile times: every shipped kernel compiled cold on one core, then read back warm from the disk cache."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable

import torch

from warploom.core.bench.report import Table
from warploom.core.device import arch_name
from warploom.core.jit import KernelSpec, compile_spec
from warploom.core.jit.cache import KernelCache
from warploom.core.jit.kernel import Kernel
from warploom.core.shipped import shipped_kernels

COLD_BUDGET_S, WARM_BUDGET_MS = 1.0, 30.0


def tables(options: argparse.Namespace, device: torch.device) -> list[Table]:
    """One table a family. On a GPU for its own architecture, loading included; elsewhere for each spec's last one."""
    found = []
    for family, specs in shipped_kernels().items():
        chosen = [spec for spec in specs if options.pattern.search(f"{family} {spec.name}")]
        if chosen:
            found.append(_family_table(family, chosen[:1] if options.quick else chosen, device))
    return found


def _family_table(family: str, specs: list[KernelSpec], device: torch.device) -> Table:
    loads = device.type == "cuda"
    rows, cold_total, over = [], 0.0, 0
    with tempfile.TemporaryDirectory(prefix="warploom-bench-") as folder:
        cache = KernelCache(folder)
        for i, spec in enumerate(specs):
            arch = arch_name(device) if loads else spec.archs[-1]
            if i == 0:
                _seconds(lambda: compile_spec(spec, arch, cache=KernelCache(f"{folder}/first")))  # loads the compiler
            cold, _ = _seconds(lambda: compile_spec(spec, arch, cache=cache))
            warm, result = _seconds(lambda: compile_spec(spec, arch, cache=cache))
            load = _seconds(lambda: Kernel(result.entry.cubin, result.entry.record, device.index or 0))[0] if loads else 0.0
            cold_total += cold
            over += cold > COLD_BUDGET_S or (warm + load) * 1e3 > WARM_BUDGET_MS
            rows.append([spec.name, arch, f"{cold:.2f}", f"{warm * 1e3:.1f}", f"{load * 1e3:.1f}" if loads else "–",
                         f"{len(result.entry.cubin) / 1024:.1f}"])  # fmt: skip
    notes = [
        f"{len(rows)} kernels, {cold_total:.1f} s cold on one core; {over} over the budget of {COLD_BUDGET_S:g} s cold or "
        f"{WARM_BUDGET_MS:g} ms warm"
    ]
    return Table(f"{family}: compile times", ("kernel", "arch", "cold s", "warm ms", "load ms", "cubin KiB"), rows, notes)


def _seconds(call: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result
