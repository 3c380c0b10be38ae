"""`HeaderLibrary`: headers of another project that kernels are built on, installed by an extra."""

from __future__ import annotations

import hashlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from warploom.core.errors import CompileError

__all__ = ["HeaderLibrary"]


@dataclass(frozen=True, kw_only=True)
class HeaderLibrary:
    """Headers that a pip package brings. Looking for them imports nothing.

    Attributes
    ----------
    name : str
        For messages.
    folders : tuple of str
        Include folders, below one entry of ``sys.path``.
    version_header : str
        Header that names the release, below the first folder. In cache keys it stands for all headers of the library:
        to hash a thousand of them would take 0.1 s of every start.
    releases : str
        Regular expression for what that header says of the releases that kernels are written for.
    install : str
        Command that installs it.
    nvrtc_options : tuple of str
        Options without which NVRTC does not take its headers.

    Examples
    --------
    >>> library = HeaderLibrary(
    ...     name="X 2", folders=("x/include",), version_header="version.h", releases="MAJOR 2", install="pip install x"
    ... )
    >>> library.why_missing()
    'needs the headers of X 2: pip install x'
    """

    name: str
    folders: tuple[str, ...]
    version_header: str
    releases: str
    install: str
    nvrtc_options: tuple[str, ...] = ()

    def find(self) -> Path | None:
        """The entry of ``sys.path`` that has such a release, None if none is installed."""
        header = Path(self.folders[0]) / self.version_header
        found = (Path(entry) for entry in sys.path if entry and (entry / header).is_file())
        return next((entry for entry in found if re.search(self.releases, (entry / header).read_text())), None)

    def why_missing(self) -> str:
        """Return what to install; "" when it is there."""
        return "" if self.find() else f"needs the headers of {self.name}: {self.install}"

    def include_folders(self) -> tuple[Path, ...]:
        """Its include folders. Raises `CompileError`, saying what to install, if there are none."""
        if (root := self.find()) is None:
            raise CompileError(f"The kernel {self.why_missing()}")
        return tuple(root / folder for folder in self.folders)

    def release(self) -> str:
        """Hash of the header that names the release. Raises `CompileError` as `include_folders` does."""
        return hashlib.sha256((self.include_folders()[0] / self.version_header).read_bytes()).hexdigest()
