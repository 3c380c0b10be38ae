"""The kernel cache: one self-checking file per kernel, named by the hash of everything that made it.

An entry is the compiler's cubin followed by a JSON record and a fixed footer, so it is still an ELF file that
``cuobjdump`` reads, and one rename publishes code and record together. Writers race freely: each writes its own
temporary file in the same folder, syncs it and renames it over the name. A reader accepts an entry only if length and
SHA-256 fit; anything else is removed and built anew. A folder that can't be written, or a full disk, costs the caching
but never the kernel. Nothing is ever executed or unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import struct
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from warploom.core.errors import PerformanceWarning
from warploom.core.settings import settings

__all__ = ["CacheEntry", "KernelCache"]

_MAGIC = b"WLKERN01"
_FOOTER = struct.Struct("<Q8s")  # length of the record, magic
_STALE_SECONDS = 3600  # a temporary file older than this was left by a writer that died


@dataclass(frozen=True)
class CacheEntry:
    """A compiled kernel and how it came to be."""

    cubin: bytes
    record: dict[str, Any] = field(default_factory=dict)

    def pack(self) -> bytes:
        record = json.dumps(self.record | {"sha256": hashlib.sha256(self.cubin).hexdigest()}, sort_keys=True).encode()
        return self.cubin + record + _FOOTER.pack(len(record), _MAGIC)

    @classmethod
    def unpack(cls, data: bytes) -> CacheEntry | None:
        """The entry, or None if the bytes are truncated or altered."""
        if len(data) < _FOOTER.size:
            return None
        length, magic = _FOOTER.unpack(data[-_FOOTER.size :])
        start = len(data) - _FOOTER.size - length
        if magic != _MAGIC or start <= 0:
            return None
        try:
            record = json.loads(data[start : -_FOOTER.size])
        except ValueError:
            return None
        cubin = data[:start]
        if not isinstance(record, dict) or record.pop("sha256", None) != hashlib.sha256(cubin).hexdigest():
            return None
        return cls(cubin, record)


class KernelCache:
    """The cache folder. All methods are safe with any number of processes on the same folder.

    Parameters
    ----------
    root : path-like, optional
        Default: the setting ``cache_dir``.
    """

    def __init__(self, root: str | os.PathLike[str] | None = None) -> None:
        self.root = Path(root) if root is not None else Path(settings.cache_dir).expanduser()
        self._complained = False

    def path(self, family: str, stem: str, key: str) -> Path:
        return self.root / family / f"{stem}-{key}.cubin"

    def read(self, path: Path) -> CacheEntry | None:
        """A valid entry, or None. A damaged one is removed, so that the next writer replaces it."""
        try:
            with open(path, "rb") as file:
                owner = os.fstat(file.fileno())
                data = file.read()
        except OSError:
            return None
        if not _trusted(owner):
            self._complain(f"{path} can be written by others and is not used")
            return None
        entry = CacheEntry.unpack(data)
        if entry is None:
            with contextlib.suppress(OSError):
                path.unlink()
        return entry

    def write(self, path: Path, entry: CacheEntry, source: str) -> bool:
        """Publish an entry and its source. False, with one warning, if the folder does not take it."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _publish(path.with_suffix(".cu"), source.encode())
            _publish(path, entry.pack())
        except OSError as error:
            self._complain(
                f"kernel cache {self.root}: {error.strerror or error}; kernels are compiled in every process. "
                "Set WARPLOOM_CACHE_DIR to a writable folder."
            )
            return False
        return True

    def entries(self) -> Iterator[Path]:
        """Paths of all entries, valid or not."""
        yield from sorted(self.root.glob("*/*.cubin"))

    def verify(self) -> tuple[int, list[Path]]:
        """Check every entry; returns the number of good ones and the paths of the damaged, which are removed."""
        good, damaged = 0, []
        for path in self.entries():
            if self.read(path) is None:
                damaged.append(path)
            else:
                good += 1
        self.remove_stale()
        return good, damaged

    def clear(self, family: str = "*") -> int:
        """Remove the entries of a family, or all; returns how many. Processes that loaded them are not affected."""
        removed = 0
        for path in self.root.glob(f"{family}/*"):
            if path.suffix in (".cubin", ".cu", ".tmp"):
                with contextlib.suppress(OSError):
                    path.unlink()
                    removed += path.suffix == ".cubin"
        return removed

    def remove_stale(self) -> None:
        """Remove temporary files whose writer was killed."""
        for path in self.root.glob("*/*.tmp"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()

    def _complain(self, message: str) -> None:
        if not self._complained:
            self._complained = True
            warnings.warn(message, PerformanceWarning, stacklevel=4)


def _trusted(status: os.stat_result) -> bool:
    """Code is loaded only from files that we or root own and that others cannot write."""
    return status.st_uid in (os.getuid(), 0) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _publish(path: Path, data: bytes) -> None:
    """Write to a temporary file in the same folder, sync, and rename over the name: atomic on local disks and NFS."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=".tmp", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
