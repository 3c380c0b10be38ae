"""Compile times: every shipped kernel compiled cold on one core, then read back warm by a new process."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

import torch

from warploom.core.bench.report import Table
from warploom.core.device import arch_name
from warploom.core.jit import KernelSpec, compile_spec
from warploom.core.jit.cache import KernelCache
from warploom.core.shipped import shipped_kernels

COLD_BUDGET_S, WARM_BUDGET_MS = 1.0, 30.0

# A new process, since this one has already hashed the headers and loaded the compiler.
_WARM = """
import json, sys, time
import torch
from warploom.core.jit import compile_spec
from warploom.core.shipped import shipped_kernels
family, gpu, archs = json.loads(sys.argv[1])
if gpu is not None:
    torch.zeros(1, device=f"cuda:{gpu}")  # the context is no part of loading a kernel
times = []
for index, arch in archs:
    spec = shipped_kernels([family])[family][index]
    start = time.perf_counter()
    if gpu is not None:
        spec.load(gpu)
    elif not compile_spec(spec, arch).from_cache:
        raise SystemExit(f"{spec.name} was not found in the cache")
    times.append(time.perf_counter() - start)
print(json.dumps(times))
"""


def tables(options: argparse.Namespace, device: torch.device) -> list[Table]:
    """One table a family. On a GPU for its own architecture, loading included; elsewhere for each spec's last one."""
    found = []
    for family, specs in shipped_kernels().items():
        chosen = [i for i, spec in enumerate(specs) if options.pattern.search(f"{family} {spec.name}")]
        if chosen:
            found.append(_family_table(family, specs, chosen[:1] if options.quick else chosen, device))
    return found


def _family_table(family: str, specs: list[KernelSpec], chosen: list[int], device: torch.device) -> Table:
    gpu = (device.index or 0) if device.type == "cuda" else None
    archs = [(i, specs[i].archs[-1] if gpu is None else arch_name(gpu)) for i in chosen]
    with tempfile.TemporaryDirectory(prefix="warploom-bench-") as folder:
        compile_spec(specs[chosen[0]], archs[0][1], cache=KernelCache(f"{folder}/first"))  # loads the compiler
        cold = [_cold(specs[i], arch, KernelCache(folder)) for i, arch in archs]
        warm = _warm(family, gpu, archs, folder)
    rows = [
        [specs[i].name, arch, f"{seconds:.2f}", f"{back * 1e3:.1f}", f"{nbytes / 1024:.1f}"]
        for (i, arch), (seconds, nbytes), back in zip(archs, cold, warm, strict=True)
    ]
    total = sum(seconds for seconds, _ in cold)
    late = sum(seconds > COLD_BUDGET_S or back * 1e3 > WARM_BUDGET_MS
               for (seconds, _), back in zip(cold, warm, strict=True))  # fmt: skip
    budget = f"{COLD_BUDGET_S:g} s cold or {WARM_BUDGET_MS:g} ms warm"
    notes = [f"{len(rows)} kernels, {total:.1f} s cold on one core; {late} over the budget of {budget}"]
    return Table(f"{family}: compile times", ("kernel", "arch", "cold s", "warm ms", "cubin KiB"), rows, notes)


def _cold(spec: KernelSpec, arch: str, cache: KernelCache) -> tuple[float, int]:
    """Seconds of a compilation, cache writing included, and bytes of the cubin."""
    start = time.perf_counter()
    entry = compile_spec(spec, arch, cache=cache).entry
    return time.perf_counter() - start, len(entry.cubin)


def _warm(family: str, gpu: int | None, archs: list[tuple[int, str]], folder: str) -> list[float]:
    """Seconds of reading each kernel back, and on a GPU of loading it, in a new process; the first one pays most."""
    command = [sys.executable, "-c", _WARM, json.dumps([family, gpu, archs])]
    environment = {**os.environ, "WARPLOOM_CACHE_DIR": folder, "WARPLOOM_CACHE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"tools/bench jit: {done.stderr}")
    return json.loads(done.stdout)
