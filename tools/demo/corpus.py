"""Training text that every machine has: the sources of the running Python's standard library."""

from __future__ import annotations

import hashlib
import random
import sysconfig
from pathlib import Path

import torch
from model import END_OF_TEXT
from torch import Tensor

# Installed packages are not the standard library; the others are generated tables rather than programs.
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "encodings", "pydoc_data"}
LARGEST_FILE = 400_000
HELD_OUT_SHARE = 20
"""One file in this many is held out."""


def source_files(root: Path) -> list[Path]:
    """The `.py` files of a standard library, sorted."""
    return [
        path
        for path in sorted(root.rglob("*.py"))
        if not SKIPPED_FOLDERS.intersection(path.relative_to(root).parts)
        and not path.name.startswith("_sysconfigdata")
        and 0 < path.stat().st_size <= LARGEST_FILE
    ]


def is_held_out(path: Path) -> bool:
    """A property of the file's name alone, so that it does not move when other files come or go."""
    return hashlib.sha256(path.name.encode()).digest()[0] % HELD_OUT_SHARE == 0


def load_corpus(seed: int, root: Path | None = None) -> tuple[Tensor, Tensor]:
    """Token streams (int16) of the training and the held-out files, each in shuffled order, ended by `END_OF_TEXT`.

    `root` is a standard library's folder; by default the running Python's. Some distributions leave out its `test`
    packages, which are more than half of the text.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    files = source_files(root)
    random.Random(seed).shuffle(files)
    streams: tuple[list[Tensor], list[Tensor]] = ([], [])
    end = torch.tensor([END_OF_TEXT], dtype=torch.int16)
    for path in files:
        data = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8).to(torch.int16)
        streams[is_held_out(path)].extend((data, end))
    if not all(streams):
        raise RuntimeError(f"too few Python sources under {root} to train on")
    return torch.cat(streams[0]), torch.cat(streams[1])
