"""``warploom cache``: list, clear and verify the compiled kernels on disk."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

__all__ = ["register"]


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "cache",
        help="list, clear or verify compiled kernels",
        description="Look after the compiled kernels on disk. All of it is safe while other processes use the cache.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, function, text in (
        ("ls", list_entries, "list the kernels: family, kernel, arch, compiler, compile time, size, age"),
        ("clear", clear, "remove the kernels, of one family or all"),
        ("verify", verify, "check every kernel's checksum and remove the damaged; exit code 1 if there were any"),
    ):
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name != "verify":
            command.add_argument("--family", default="*", metavar="NAME", help="only this family's kernels")
        command.set_defaults(run=function)


def list_entries(options: argparse.Namespace) -> int:
    from warploom.core.jit.cache import CacheEntry, KernelCache

    cache = KernelCache()
    paths = [path for path in cache.entries() if options.family in ("*", path.parent.name)]
    rows, total = [], 0
    for path in paths:
        data = path.read_bytes()
        entry = CacheEntry.unpack(data)  # not KernelCache.read, which removes what is damaged
        total += len(data)
        record = entry.record if entry else {}
        rows.append(
            [
                path.parent.name,
                record.get("name", f"{path.name}: damaged"),
                record.get("arch", ""),
                record.get("compiler", ""),
                f"{record['seconds']:.2f} s" if "seconds" in record else "",
                f"{len(data) / 1024:.0f} KiB",
                _age(path),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"{len(rows)} kernels, {total / 2**20:.1f} MiB in {cache.root}")
    return 0


def clear(options: argparse.Namespace) -> int:
    from warploom.core.jit.cache import KernelCache

    cache = KernelCache()
    print(f"removed {cache.clear(options.family)} kernels from {cache.root}")
    return 0


def verify(options: argparse.Namespace) -> int:
    from warploom.core.jit.cache import KernelCache

    cache = KernelCache()
    good, damaged = cache.verify()
    print(*(f"damaged, removed: {path}" for path in damaged), f"{good} kernels are intact in {cache.root}", sep="\n")
    return 1 if damaged else 0


def _age(path: Path) -> str:
    seconds = max(0.0, time.time() - path.stat().st_mtime)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
