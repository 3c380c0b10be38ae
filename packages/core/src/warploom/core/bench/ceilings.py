"""What this machine can do at best, measured in the same run: the scale for everything else.

A limit read off a data sheet would make every result look worse on a machine that is warm, shared or capped. Measured
with the same timer: a large copy (bytes read plus bytes written), a large read (a sum), matrix products of random
normal factors through torch, and the launch of a graph that does next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from warploom.core.bench.timing import Timer

__all__ = ["Ceilings", "limit_us", "measure_ceilings"]


@dataclass(frozen=True)
class Ceilings:
    """Rates of the machine: GB/s of memory, TFLOP/s of matrix products by input type, microseconds of a launch."""

    copy_gbs: float
    read_gbs: float
    tflops: dict[str, float] = field(default_factory=dict)
    launch_us: float = 0.0

    @property
    def memory_gbs(self) -> float:
        """The better of copy and read, the limit of a kernel that only moves bytes."""
        return max(self.copy_gbs, self.read_gbs)

    def __str__(self) -> str:
        products = ", ".join(f"{kind} product {rate:.4g} TFLOP/s" for kind, rate in self.tflops.items())
        return (f"copy {self.copy_gbs:.4g} GB/s, read {self.read_gbs:.4g} GB/s, {products}, "
                f"least launch {self.launch_us:.3g} us")  # fmt: skip


def limit_us(ceilings: Ceilings, nbytes: float, flops: float, math: str) -> float:
    """Return the least time for work of this size: its bytes or its operations, whichever takes longer.

    Examples
    --------
    >>> limit_us(Ceilings(4000.0, 3000.0, {"bf16": 800.0}), nbytes=4e9, flops=1e6, math="bf16")
    1000.0
    """
    rate = ceilings.tflops.get(math) or max(ceilings.tflops.values(), default=0.0)
    compute_us = flops / (rate * 1e6) if rate else 0.0
    return max(nbytes / (ceilings.memory_gbs * 1e3), compute_us)


def measure_ceilings(timer: Timer, device: torch.device) -> Ceilings:
    """Measure the machine under a device. Takes about two seconds on a GPU, less on the CPU."""
    copy_gbs, read_gbs = _memory_rates(timer, device)
    rates = {}
    for kind, (size, product) in _products(device).items():
        rates[kind] = 2.0 * size**3 / timer.time({kind: product})[kind].us / 1e6
    one = torch.ones(1, device=device)
    launch = timer.time({"launch": lambda: one.add_(1.0)})["launch"]
    return Ceilings(copy_gbs, read_gbs, rates, launch.us)


def _memory_rates(timer: Timer, device: torch.device) -> tuple[float, float]:
    count = (1 << 28) if device.type == "cuda" else (1 << 23)  # 1 GiB, 32 MiB: several times the caches
    source, target = torch.randn(count, device=device), torch.empty(count, device=device)
    timings = timer.time({"copy": lambda: target.copy_(source), "read": lambda: source.sum()})
    return 2 * source.nbytes / timings["copy"].us / 1e3, source.nbytes / timings["read"].us / 1e3


def _products(device: torch.device) -> dict[str, tuple[int, Callable[[], Any]]]:
    """Edge length and call of each matrix product that this device has."""
    if device.type != "cuda":
        size = 512
        a, b = torch.randn(size, size), torch.randn(size, size)
        return {"fp32": (size, lambda: a @ b)}
    size = 8192
    x, y = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    products: dict[str, tuple[int, Callable[[], Any]]] = {"bf16": (size, lambda: x @ y)}
    if torch.cuda.get_device_capability(device) >= (8, 9):
        one = torch.ones((), device=device)
        p, q = x.to(torch.float8_e4m3fn), y.to(torch.float8_e4m3fn).t()
        products["fp8"] = size, lambda: torch._scaled_mm(p, q, one, one, out_dtype=torch.bfloat16, use_fast_accum=True)
    return products
