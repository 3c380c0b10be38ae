"""``warploom build``: compile kernels ahead of time into the kernel cache."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from warploom.core.jit.build import BuildResult
    from warploom.core.jit.spec import KernelSpec
    from warploom.core.lined_yaml import LinedMapping

__all__ = ["register", "select_kernels"]

_SCHEMA = 1
_EPILOG = """\
A list of kernels is a YAML file:

  schema: 1
  kernels:
    - family: sampling                        # all of the family's kernels
    - family: gemm
      kernel: quantize_groups_kernel          # one template, every shipped instance
      config: {In: __nv_bfloat16}             # with these values; all values of the template name a new instance
      archs: [sm_90a]                         # default: the kernel's own

Kernels go to the cache folder that `warploom info` shows; --cache-dir fills another one, to ship with an image
(point WARPLOOM_CACHE_DIR at it there).
"""


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "build",
        help="compile kernels ahead of time",
        description="Compile kernels into the cache, in parallel. Needs no GPU.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("list", nargs="?", type=Path, metavar="KERNELS.yaml", help="which kernels to build")
    parser.add_argument("--family", action="append", metavar="NAME", help="what a family ships; 'all' for every one")
    parser.add_argument("--arch", action="append", metavar="ARCH", help="such as sm_90a; default: each kernel's own")
    parser.add_argument("--jobs", type=int, metavar="N", help="compilations at once; default: WARPLOOM_COMPILE_JOBS")
    parser.add_argument("--compiler", choices=("nvrtc", "nvcc"), help="default: WARPLOOM_COMPILER")
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="fill this folder instead of the cache in use")
    parser.add_argument("--dry-run", action="store_true", help="print what would be built")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from warploom.core.errors import ArgumentError
    from warploom.core.settings import settings

    if (options.list is None) == (options.family is None):
        raise ArgumentError("build: give either a list of kernels or --family NAME (--family all for everything).")
    if options.jobs is not None and options.jobs < 1:
        raise ArgumentError.of("build", "--jobs", "a positive number", options.jobs)
    wanted = select_kernels(options.list) if options.list else _of_families(options.family)
    work = [(spec, tuple(options.arch or archs)) for spec, archs in wanted]
    if options.dry_run:
        print(*(f"{spec.family}  {spec.name}  {', '.join(archs)}" for spec, archs in work), sep="\n")
        return 0
    folder = contextlib.nullcontext() if options.cache_dir is None else settings.override(cache_dir=options.cache_dir)
    with folder:
        _check_folder()
        _build(work, options)
    return 0


def _of_families(names: list[str]) -> list[tuple[KernelSpec, tuple[str, ...]]]:
    from warploom.core.shipped import shipped_kernels

    shipped = shipped_kernels(None if "all" in names else dict.fromkeys(names))
    return [(spec, spec.archs) for specs in shipped.values() for spec in specs]


def _check_folder() -> None:
    """An unwritable cache costs a running program only time; here it makes the work pointless."""
    import tempfile

    from warploom.core.errors import ArgumentError
    from warploom.core.jit.cache import KernelCache
    from warploom.core.settings import settings

    if not settings.cache:
        raise ArgumentError("build: the kernel cache is off (WARPLOOM_CACHE=0), so nothing would be kept.")
    root = KernelCache().root
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        hint = "Give --cache-dir another folder."
        raise ArgumentError(f"build: cannot write to {root}: {error.strerror}. {hint}") from error


def _build(work: list[tuple[KernelSpec, tuple[str, ...]]], options: argparse.Namespace) -> None:
    from warploom.core.jit.build import build
    from warploom.core.jit.cache import KernelCache

    started = time.perf_counter()
    results: list[BuildResult] = []
    by_archs: dict[tuple[str, ...], list[KernelSpec]] = {}
    for spec, archs in work:
        by_archs.setdefault(archs, []).append(spec)
    for archs, specs in by_archs.items():
        results += build(specs, archs, compiler=options.compiler, jobs=options.jobs)
    for result in results:
        how = "cached" if result.from_cache else f"{result.seconds:.2f} s"
        print(f"{result.spec.family}  {result.spec.name}  {result.arch}  {how}")
    fresh = sum(not result.from_cache for result in results)
    seconds = time.perf_counter() - started
    print(f"{fresh} compiled, {len(results) - fresh} were cached, {seconds:.1f} s, in {KernelCache().root}")


def select_kernels(path: Path) -> list[tuple[KernelSpec, tuple[str, ...]]]:
    """Read a list of kernels.

    Returns
    -------
    list of (KernelSpec, tuple of str)
        Each instance with the architectures to build it for.

    Raises
    ------
    ArgumentError
        With file, line and field: not a list of kernels, a family that is not installed, a kernel or a template value
        that the family doesn't have.
    """
    from warploom.core.lined_yaml import LinedMapping, read_lined

    document = read_lined(path)
    document.require_keys({"schema": int, "kernels": list})
    if document["schema"] != _SCHEMA:
        raise document.error("schema", f"{_SCHEMA}, the version that this release reads", document["schema"])
    found = []
    for entry in document["kernels"]:
        if not isinstance(entry, LinedMapping):
            raise document.error("kernels", "a list of mappings with 'family'", repr(entry))
        entry.require_keys({"family": str}, {"kernel": str, "config": dict, "archs": list})
        found += [(spec, tuple(entry.get("archs", spec.archs))) for spec in _matching(entry)]
    return found


def _matching(entry: LinedMapping) -> list[KernelSpec]:
    """The shipped instances that an entry names, or the new instance that its full configuration describes."""
    from warploom.core.errors import ArgumentError
    from warploom.core.shipped import shipped_kernels

    try:
        shipped = shipped_kernels([entry["family"]])[entry["family"]]
    except ArgumentError as error:
        raise entry.error("family", "an installed family", repr(entry["family"]), str(error)) from None
    if "kernel" not in entry:
        if "config" in entry:
            raise entry.error("config", "given together with 'kernel'", "no kernel")
        return shipped
    templates = [spec for spec in shipped if entry["kernel"] in (spec.stem, spec.kernel)]
    if not templates:
        names = ", ".join(sorted({spec.stem for spec in shipped})) or "none"
        raise entry.error("kernel", f"a kernel of {entry['family']} ({names})", repr(entry["kernel"]))
    config = entry.get("config", {})
    exact = [spec for spec in templates if all(_equal(spec.config, key, value) for key, value in config.items())]
    if exact:
        return exact
    if set(config) == set(templates[0].config):
        return [replace(templates[0], config=dict(config))]
    unknown = sorted(set(config) - set(templates[0].config))
    expected = f"values of a shipped instance, or all of {', '.join(templates[0].config)} for a new one"
    raise entry.error("config", expected, f"unknown {', '.join(unknown)}" if unknown else dict(config))


def _equal(config: Mapping[str, Any], key: str, value: Any) -> bool:
    return key in config and type(config[key]) is type(value) and config[key] == value
