"""Compile times: every shipped kernel compiled cold on one core, then read back warm from the disk cache."""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time

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
        arch_of = {spec: arch_name(device) if loads else spec.archs[-1] for spec in specs}
        compile_spec(specs[0], arch_of[specs[0]], cache=KernelCache(f"{folder}/first"))  # loads the compiler
        for spec, arch in arch_of.items():
            cold, warm, load, nbytes = _measure(spec, arch, KernelCache(folder), device if loads else None)
            cold_total += cold
            over += cold > COLD_BUDGET_S or (warm + load) * 1e3 > WARM_BUDGET_MS
            load_ms = f"{load * 1e3:.1f}" if loads else "–"
            rows.append([spec.name, arch, f"{cold:.2f}", f"{warm * 1e3:.1f}", load_ms, f"{nbytes / 1024:.1f}"])
    budget = f"{COLD_BUDGET_S:g} s cold or {WARM_BUDGET_MS:g} ms warm"
    notes = [f"{len(rows)} kernels, {cold_total:.1f} s cold on one core; {over} over the budget of {budget}"]
    columns = ("kernel", "arch", "cold s", "warm ms", "load ms", "cubin KiB")
    return Table(f"{family}: compile times", columns, rows, notes)


def _measure(
    spec: KernelSpec, arch: str, cache: KernelCache, device: torch.device | None
) -> tuple[float, float, float, int]:
    """Seconds of a cold compilation, of reading it back, and of loading it on a device; bytes of the cubin."""
    moments = [time.perf_counter()]
    compile_spec(spec, arch, cache=cache)
    moments.append(time.perf_counter())
    entry = compile_spec(spec, arch, cache=cache).entry
    moments.append(time.perf_counter())
    if device is not None:
        Kernel(entry.cubin, entry.record, device.index or 0)
        moments.append(time.perf_counter())
    cold, warm, load = [after - before for before, after in itertools.pairwise(moments)] + [0.0] * (device is None)
    return cold, warm, load, len(entry.cubin)
