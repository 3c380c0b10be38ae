"""Settings: one table of ``WARPLOOM_*`` environment variables with type, default and meaning.

The environment is read at each access, so a change takes effect at once; `settings.override` sets values for a
block of code in this process and wins over the environment.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warploom.core.errors import ArgumentError

__all__ = ["SETTINGS", "Setting", "settings"]


def _flag(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in ("1", "true", "yes", "on"):
        return True
    if lowered in ("0", "false", "no", "off", ""):
        return False
    raise ValueError("use 1 or 0")


def _choice(*names: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in names:
            raise ValueError(f"use one of {', '.join(names)}")
        return text

    return parse


def _positive_int(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError("use a positive integer")
    return value


def _positive_float(text: str) -> float:
    if not (value := float(text)) > 0:
        raise ValueError("use a positive number")
    return value


def _backend_map(text: str) -> dict[str, str]:
    """``cuda`` for every operator, or ``softmax=cuda,mm_bf16=cublaslt``; both may be mixed."""
    pairs = [item.strip() for item in text.split(",") if item.strip()]
    return {op.strip() or "*": name.strip() for op, _, name in (p.rpartition("=") for p in pairs)}


def _default_cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path("~/.cache").expanduser()) / "warploom"


@dataclass(frozen=True)
class Setting:
    """One row of the table."""

    name: str
    type: str
    default: Any
    meaning: str
    parse: Callable[[str], Any]

    @functools.cached_property
    def variable(self) -> str:
        return f"WARPLOOM_{self.name.upper()}"


SETTINGS: dict[str, Setting] = {
    row.name: row
    for row in (
        Setting(
            "cache_dir", "path", None, "Kernel cache; default $XDG_CACHE_HOME/warploom or ~/.cache/warploom.", Path
        ),
        Setting("cache", "bool", True, "Keep compiled kernels on disk; 0 compiles anew in every process.", _flag),
        Setting(
            "compiler",
            "nvrtc | nvcc",
            "nvrtc",
            "Compiler of kernels; nvcc goes through ninja.",
            _choice("nvrtc", "nvcc"),
        ),
        Setting(
            "nvcc", "path", None, "The nvcc to use; default: the one on PATH, in CUDA_HOME or in the pip package.", Path
        ),
        Setting("arch", "text", None, "Architecture to compile for, such as sm_90a; default: the device's.", str),
        Setting(
            "compile_jobs", "int", None, "Kernels compiled at once; default: the CPU count, at most 16.", _positive_int
        ),
        Setting("progress", "bool", None, "Progress bars; default: only when standard error is a terminal.", _flag),
        Setting(
            "backend",
            "text",
            {},
            "Backend for `backend='auto'`: a name, or a list such as softmax=cuda,mm_bf16=cublaslt.",
            _backend_map,
        ),
        Setting(
            "debug_checks",
            "bool",
            False,
            "Check values too (page indices, offsets, rank agreement); synchronises.",
            _flag,
        ),
        Setting(
            "log",
            "off | info | debug",
            "off",
            "Log compilation, cache and backend choices to standard error.",
            _choice("off", "info", "debug"),
        ),
        Setting(
            "comm_timeout",
            "seconds",
            30.0,
            "How long a collective waits for a peer before it reports the fault.",
            _positive_float,
        ),
    )
}


class Settings:
    """Attribute access to the table: ``settings.cache_dir``.

    Examples
    --------
    >>> from warploom.core.settings import settings
    >>> with settings.override(debug_checks=True):
    ...     settings.debug_checks
    True
    """

    def __init__(self) -> None:
        self._overrides: dict[str, Any] = {}
        self.version = 0  # counts overrides; caches keyed by settings compare it

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in SETTINGS:
            raise AttributeError(f"no setting {name!r}; the settings are {', '.join(SETTINGS)}")
        if name in self._overrides:
            return self._overrides[name]
        row = SETTINGS[name]
        text = os.environ.get(row.variable)
        if text is None or (text == "" and row.type != "text"):
            return _default_cache_dir() if name == "cache_dir" else row.default
        try:
            return row.parse(text)
        except ValueError as error:
            raise ArgumentError.of("settings", row.variable, row.type, repr(text), str(error)) from error

    def key(self, *names: str) -> tuple[Any, ...]:
        """What the settings of these names follow from, for the key of what is kept as long as they stay.

        Examples
        --------
        >>> before = settings.key("debug_checks")
        >>> with settings.override(debug_checks=True):
        ...     settings.key("debug_checks") == before
        False
        """
        return (self.version, *[os.environ.get(SETTINGS[name].variable) for name in names])

    @contextlib.contextmanager
    def override(self, **values: Any) -> Iterator[None]:
        """Set settings (by their short names) for a block; nesting works, threads share them."""
        unknown = values.keys() - SETTINGS.keys()
        if unknown:
            raise ArgumentError.of(
                "settings.override", sorted(unknown)[0], f"one of {', '.join(SETTINGS)}", "an unknown name"
            )
        if isinstance(values.get("backend"), str):
            values["backend"] = _backend_map(values["backend"])
        before = dict(self._overrides)
        self._overrides.update(values)
        self.version += 1
        try:
            yield
        finally:
            self._overrides = before
            self.version += 1


settings = Settings()
