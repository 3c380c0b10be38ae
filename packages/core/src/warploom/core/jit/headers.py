"""Include folders, and the hash of everything that a source includes."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import pkgutil
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from warploom.core.errors import CompileError

__all__ = ["cuda_include", "hash_includes", "include_folders"]

# No anchor to the line's beginning: that would take 7 ms for CUDA's headers, and an include in a comment does no harm.
_INCLUDE = re.compile(r'#[ \t]*include[ \t]*[<"]([^>"\n]+)[>"]')

_PIP_FOLDERS = {"12": "nvidia/cuda_runtime/include", "13": "nvidia/cu13/include"}  # by major version of CUDA


@functools.cache
def cuda_include() -> Path:
    """Folder of ``cuda_bf16.h`` and its like: of the pip package that torch or an extra brings, or of a toolkit."""
    folder = _PIP_FOLDERS.get(importlib.metadata.version("cuda-bindings").partition(".")[0], "")
    for entry in sys.path if folder else ():
        if (Path(entry) / folder / "cuda_runtime.h").is_file():
            return Path(entry) / folder
    from cuda import pathfinder  # knows conda and toolkits too; importing it takes 20 ms of a warm start

    found = pathfinder.find_nvidia_header_directory("cudart")
    if found is None:
        raise CompileError(
            "no CUDA headers found (cuda_runtime.h). Install them with `pip install 'warploom-core[cu13]'` "
            "(or [cu12]), or set CUDA_HOME to a CUDA toolkit."
        )
    return Path(found)


@functools.cache
def include_folders() -> tuple[Path, ...]:
    """The ``include`` folder of core and of every installed family, then CUDA's."""
    import warploom

    own = [
        folder
        for module in pkgutil.iter_modules(warploom.__path__)
        if module.ispkg
        for root in warploom.__path__
        if (folder := Path(root) / module.name / "include").is_dir()
    ]
    return (*dict.fromkeys(own), cuda_include())


def _resolve(name: str, folders: Sequence[Path]) -> Path | None:
    return next((path for folder in folders if (path := folder / name).is_file()), None)


@functools.lru_cache(maxsize=4096)
def _digest_and_includes(path: Path, mtime_ns: int, size: int) -> tuple[str, tuple[str, ...]]:
    """Content hash and included names of one file; time and size in the key notice an edit within the process."""
    data = path.read_bytes()
    return hashlib.sha256(data).hexdigest(), tuple(_INCLUDE.findall(data.decode("utf-8", "replace")))


def hash_includes(source: str, folders: Sequence[Path]) -> str:
    """Hash of the contents of every header that `source` includes, recursively, as found in the include `folders`.

    Includes in inactive ``#if`` branches count too: a key that changes too often costs a compilation, one that changes
    too rarely runs an old kernel. Names that no folder holds (the compiler's built-in headers) count by name.
    """
    total = hashlib.sha256()
    seen: set[str] = set()
    queue: list[tuple[str, Sequence[Path]]] = [(name, folders) for name in _INCLUDE.findall(source)]
    while queue:
        name, search = queue.pop()
        path = _resolve(name, search)
        identity = name if path is None else str(path)
        if identity in seen:
            continue
        seen.add(identity)
        if path is None:
            total.update(f"{name}:builtin\n".encode())
            continue
        stat = path.stat()
        digest, includes = _digest_and_includes(path, stat.st_mtime_ns, stat.st_size)
        total.update(f"{name}:{digest}\n".encode())
        queue.extend((inner, (path.parent, *folders)) for inner in includes)
    return total.hexdigest()
