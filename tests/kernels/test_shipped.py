"""Every shipped kernel instance compiles for every architecture that it is shipped for: in time, without spills, and
with the instructions that its spec expects."""

from __future__ import annotations

import functools
import re
import tempfile
import time

import pytest

from warploom.core.jit import KernelSpec, compile_spec
from warploom.core.jit.cache import CacheEntry, KernelCache
from warploom.core.shipped import shipped_kernels
from warploom.core.testing import disassemble, resources_of, why_no_disassembler

# The goal is 1 s on an idle core. Processor time counts, and four times the goal is allowed, so that a slow machine fails no
# test. What shares the core adds to that time (the same code has taken 2.4 and 4.3 s an hour apart), so the least of a few
# compilations counts. The times are printed at the end.
BUDGET_S = 4.0
# The largest have a goal of 3 s, and twice that: the same kernel takes up to 1.7 times as long on another day.
LARGE, LARGE_BUDGET_S = ("attention_hopper_kernel",), 6.0
# Those that include another project's headers, which take most of it, have a goal of 12 s, and 1.7 times that: unchanged code
# has taken 6.5 and 13.3 s.
LIBRARY_BUDGET_S = 20.0
ATTEMPTS = 3
MAX_REGISTERS = 255

INSTANCES = [
    pytest.param(spec, arch, id=f"{family}-{spec.name}-{arch}")
    for family, specs in shipped_kernels().items()
    for spec in specs
    for arch in spec.archs
]


@functools.cache
def _load_compiler() -> None:
    """Loading the compiler's library is paid once a process, not by each kernel."""
    spec = INSTANCES[0].values[0]
    _compile(spec, spec.archs[0])


def _compile(spec: KernelSpec, arch: str) -> CacheEntry:
    with tempfile.TemporaryDirectory() as folder:
        return compile_spec(spec, arch, cache=KernelCache(folder)).entry


def _budget(spec: KernelSpec) -> float:
    if spec.libraries:
        return LIBRARY_BUDGET_S
    return LARGE_BUDGET_S if spec.kernel.endswith(LARGE) else BUDGET_S


@functools.cache
def compiled(spec: KernelSpec, arch: str) -> tuple[CacheEntry, float]:
    """The entry of one instance and the processor time that it took, the least of a few if it is beyond the budget."""
    _load_compiler()
    least = float("inf")
    for _ in range(ATTEMPTS):
        start = time.thread_time()
        entry = _compile(spec, arch)
        least = min(least, time.thread_time() - start)
        if least <= _budget(spec):
            break
    return entry, least


@pytest.mark.parametrize(("spec", "arch"), INSTANCES)
def test_compiles_in_time_without_spills(spec, arch, record_property):
    entry, seconds = compiled(spec, arch)
    record_property("kernel", f"{spec.family} {spec.name} {arch}")
    record_property("compile_seconds", seconds)
    used = resources_of(entry.record["log"])
    assert (used.spill_stores, used.spill_loads) == (0, 0), f"{used} in\n{entry.record['log']}"
    assert used.stack == 0, f"an array lies in local memory: {used}"
    assert 0 < used.registers <= MAX_REGISTERS
    assert "serialized" not in entry.record["log"], f"products do not run side by side:\n{entry.record['log']}"
    assert seconds <= _budget(spec)


@pytest.mark.skipif(bool(why_no_disassembler()), reason=why_no_disassembler())
@pytest.mark.parametrize(("spec", "arch"), [instance for instance in INSTANCES if instance.values[0].expect_sass])
def test_machine_code_holds_the_expected_instructions(spec, arch):
    code = disassemble(compiled(spec, arch)[0].cubin)
    missing = [name for name in spec.expect_sass if not re.search(rf"\b{re.escape(name)}\b", code)]
    present = sorted(set(re.findall(r"\b(?:LD|ST|HGMMA|HMMA|UTMA|U?BLKCP|MUFU|RED|ATOM)[A-Z0-9_.]*", code)))
    assert not missing, f"of memory and matrix instructions there are {', '.join(present)}"
