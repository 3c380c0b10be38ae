"""From specs to compiled kernels: one at a time, or many at once with a progress bar."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from warploom.core.jit.cache import CacheEntry, KernelCache
from warploom.core.jit.compilers import Compiler, get_compiler
from warploom.core.jit.compilers.base import COMMON_OPTIONS
from warploom.core.jit.headers import hash_includes, include_folders
from warploom.core.jit.spec import KernelSpec
from warploom.core.settings import settings

__all__ = ["BuildResult", "Progress", "build", "compile_spec", "key_of"]

_FORMAT = 1  # raise when the meaning of a cache entry changes


def _own_includes(spec: KernelSpec) -> tuple[Path, ...]:
    return (*map(Path, spec.include_dirs), *include_folders())


def _options(spec: KernelSpec, compiler: Compiler) -> list[str]:
    needed = [option for library in spec.libraries for option in library.nvrtc_options if compiler.name == "nvrtc"]
    return [*spec.options, *dict.fromkeys(needed)]


def key_of(spec: KernelSpec, arch: str, compiler: Compiler) -> str:
    """Hash of everything that determines the machine code: nothing in it is listed by hand.

    Raises `CompileError` where a library of the spec is not installed.
    """
    parts = {
        "format": _FORMAT,
        "source": spec.source,
        "includes": hash_includes(spec.source, _own_includes(spec)),
        "libraries": [library.release() for library in spec.libraries],
        "options": [*COMMON_OPTIONS, *_options(spec, compiler)],
        "compiler": compiler.version(),
        "arch": arch,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:40]


@dataclass(frozen=True)
class BuildResult:
    """One kernel of one architecture, compiled or from the cache."""

    spec: KernelSpec
    arch: str
    entry: CacheEntry
    seconds: float
    from_cache: bool


_locks_guard = threading.Lock()
_locks: dict[str, threading.Lock] = {}


def compile_spec(
    spec: KernelSpec, arch: str, *, compiler: str | None = None, cache: KernelCache | None = None
) -> BuildResult:
    """Compile one spec for one architecture, or take it from the cache.

    Threads of a process that want the same kernel wait for one compilation; processes race and the last rename wins.
    """
    started = time.perf_counter()
    chosen = get_compiler(compiler)
    key = key_of(spec, arch, chosen)
    store = cache if cache is not None else (KernelCache() if settings.cache else None)
    with _locks_guard:
        lock = _locks.setdefault(key, threading.Lock())
    with lock:
        path = store.path(spec.family, spec.stem, key) if store else None
        entry = store.read(path) if store and path else None
        from_cache = entry is not None
        if entry is None:
            entry = _compile(spec, arch, chosen)
            if store and path:
                store.write(path, entry, spec.source)
    seconds = time.perf_counter() - started
    _log(f"{spec.name} {arch}: {'cache' if from_cache else chosen.name} {seconds:.3f} s")
    return BuildResult(spec, arch, entry, seconds, from_cache)


def _compile(spec: KernelSpec, arch: str, compiler: Compiler) -> CacheEntry:
    started = time.perf_counter()
    foreign = [folder for library in spec.libraries for folder in library.include_folders()]
    done = compiler.compile(spec.source, spec.stem, arch, _options(spec, compiler), [*foreign, *_own_includes(spec)])
    record = {
        "name": spec.name,
        "kernel": spec.kernel,
        "family": spec.family,
        "arch": arch,
        "compiler": compiler.version(),
        "seconds": round(time.perf_counter() - started, 3),
        "log": done.log,
    }
    return CacheEntry(done.cubin, record)


def _log(message: str) -> None:
    if settings.log != "off":
        print(f"warploom: {message}", file=sys.stderr)


class Progress:
    """A one-line progress bar on standard error, only when several things are to be done and someone watches."""

    def __init__(self, total: int, title: str, stream: TextIO | None = None) -> None:
        self._total, self._title, self._done = total, title, 0
        self._stream = stream if stream is not None else sys.stderr
        wanted = settings.progress if settings.progress is not None else self._stream.isatty()
        self._shown = wanted and total > 1

    def step(self, label: str) -> None:
        self._done += 1
        if not self._shown:
            return
        filled = 24 * self._done // self._total
        bar = "#" * filled + "-" * (24 - filled)
        end = "\n" if self._done == self._total else ""
        print(
            f"\r{self._title} [{bar}] {self._done}/{self._total} {label[:48]:<48}",
            end=end,
            file=self._stream,
            flush=True,
        )


def build(
    specs: Iterable[KernelSpec],
    archs: Sequence[str] | None = None,
    *,
    compiler: str | None = None,
    jobs: int | None = None,
    cache: KernelCache | None = None,
    done: Callable[[BuildResult], None] | None = None,
) -> list[BuildResult]:
    """Compile several kernels in parallel.

    Parameters
    ----------
    specs : iterable of KernelSpec
        What to build.
    archs : sequence of str, optional
        Architectures; default: each spec's own list.
    compiler : {"nvrtc", "nvcc"}, optional
        Default: the setting.
    jobs : int, optional
        Compilations at once; default: the setting ``compile_jobs``, else the CPU count up to 16.
    cache : KernelCache, optional
        Default: the cache of the settings.
    done : callable, optional
        Called with each result as it comes.

    Returns
    -------
    list of BuildResult
        In the order of `specs` times `archs`.

    Raises
    ------
    CompileError
        The first failure, after the running compilations ended.
    """
    work = [(spec, arch) for spec in specs for arch in (archs or spec.archs)]
    workers = jobs or settings.compile_jobs or min(os.cpu_count() or 1, 16)
    progress = Progress(len(work), "compiling")
    with ThreadPoolExecutor(max_workers=workers) as pool:
        futures = [pool.submit(compile_spec, spec, arch, compiler=compiler, cache=cache) for spec, arch in work]
        try:
            for future in as_completed(futures):
                result = future.result()
                progress.step(result.spec.name)
                if done:
                    done(result)
        except BaseException:
            for future in futures:
                future.cancel()
            raise
    return [future.result() for future in futures]
