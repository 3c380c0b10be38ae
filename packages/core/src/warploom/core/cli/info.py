"""``warploom info``: versions, GPUs, compilers, cache, settings and families."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable
from typing import Any

__all__ = ["register"]

_PACKAGES = ("cuda-bindings", "nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12", "nvidia-cutlass", "triton", "mpi4py")


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "info",
        help="versions, GPUs, compilers, cache, settings, families",
        description="Print what this installation consists of. Needs no GPU, no driver and no compiler.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for bug reports and scripts")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    sections = {
        "versions": versions,
        "families": families,
        "GPUs": gpus,
        "compilers": compilers,
        "cache": cache,
        "settings": settings_in_force,
    }
    found = {title: _section(section) for title, section in sections.items()}
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    for title, values in found.items():
        print(f"{title}:")
        width = max((len(name) for name in values), default=0)
        print(*(f"  {name:<{width}}  {value}" for name, value in values.items()), sep="\n")
    return 0


def _section(section: Callable[[], dict[str, str]]) -> dict[str, str]:
    """A section's lines. A setting that can't be read must not keep this command from showing which one it is."""
    from warploom.core.errors import WarploomError

    try:
        return section()
    except WarploomError as error:
        return {"unknown": str(error).splitlines()[0]}


def versions() -> dict[str, str]:
    """Python, torch and the packages that the JIT uses."""
    import torch

    from warploom import __version__

    found = {"warploom": __version__, "python": platform.python_version(), "platform": platform.platform()}
    found["torch"] = f"{torch.__version__} (CUDA {torch.version.cuda})" if torch.version.cuda else torch.__version__
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def families() -> dict[str, str]:
    """Every family of the project: its version, or how to install it; then those of third parties."""
    from warploom.core.families import FAMILIES, installed

    points = installed()
    found = {}
    for name in sorted({*FAMILIES, *points}):
        if name not in points:
            found[name] = f"not installed: pip install {FAMILIES[name].distribution}"
            continue
        distribution = points[name].dist
        found[name] = f"{distribution.metadata['Name']} {distribution.version}" if distribution else points[name].value
    return found


def gpus() -> dict[str, str]:
    """The GPUs that torch sees, or why it sees none."""
    import torch

    from warploom.core.device import arch_name, device_name, has_driver, sm_count

    if not has_driver():
        return {"none": "no NVIDIA driver; operators run on their reference backends, kernels compile but don't launch"}
    if torch.version.cuda is None:
        return {"none": "this torch is a CPU build; install one for CUDA to use the GPU"}
    if not torch.cuda.is_available():
        return {"none": "the NVIDIA driver shows torch no GPU"}
    found = {}
    for i in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(i).total_memory / 2**30
        found[str(i)] = f"{device_name(i)}, {arch_name(i)}, {sm_count(i)} SMs, {memory:.0f} GiB"
    return found


def compilers() -> dict[str, str]:
    """Version of each compiler, or what to install."""
    from warploom.core.errors import CompileError
    from warploom.core.jit.compilers import COMPILERS
    from warploom.core.settings import settings

    found = {}
    for name, compiler in COMPILERS.items():
        try:
            found[name] = compiler.version() + (" (in use)" if name == settings.compiler else "")
        except CompileError as error:
            found[name] = str(error).splitlines()[0]
    return found


def cache() -> dict[str, str]:
    """Where compiled kernels are kept, how many, and whether new ones can be written."""
    from warploom.core.jit.cache import KernelCache
    from warploom.core.settings import settings

    store = KernelCache()
    paths = list(store.entries())
    size = sum(path.stat().st_size for path in paths) / 2**20
    nearest = next(folder for folder in (store.root, *store.root.absolute().parents) if folder.exists())
    writable = "yes" if os.access(nearest, os.W_OK) else "no; set WARPLOOM_CACHE_DIR to a folder that is"
    return {
        "folder": str(store.root),
        "kernels": f"{len(paths)}, {size:.1f} MiB",
        "writable": writable if settings.cache else "not used (WARPLOOM_CACHE=0)",
    }


def settings_in_force() -> dict[str, str]:
    """Each variable, its value, and whether the environment set it; a value that can't be read says so."""
    from warploom.core.errors import ArgumentError
    from warploom.core.settings import SETTINGS, settings

    found = {}
    for row in SETTINGS.values():
        origin = "from the environment" if row.variable in os.environ else "default"
        try:
            found[row.variable] = f"{getattr(settings, row.name)} ({origin}). {row.meaning}"
        except ArgumentError as error:
            found[row.variable] = f"INVALID: {error}"
    return found
