"""Shows the text of several requests while it is generated."""

from __future__ import annotations

import codecs
import shutil
import time
from collections.abc import Iterable
from typing import TextIO

from model import END_OF_TEXT
from scheduler import Request

REFRESH_SECONDS = 1 / 15


class TextStream:
    """Bytes of one request turned into lines of printable text."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.partial = ""

    def push(self, tokens: list[int]) -> list[str]:
        """Add tokens; returns the lines that they complete."""
        data = bytes(token for token in tokens if token < END_OF_TEXT)
        text = self._decoder.decode(data)
        *lines, self.partial = (self.partial + printable(text)).split("\n")
        return lines

    def flush(self) -> list[str]:
        """The unfinished last line, if any."""
        rest, self.partial = self.partial + self._decoder.decode(b"", final=True), ""
        return [rest] if rest else []


def printable(text: str) -> str:
    """`text` without control characters: a byte-level model may emit any, escape sequences included."""
    text = text.replace("\t", "    ")
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


class LineDisplay:
    """Prints each line when it is complete, after the number of its request. For files and pipes."""

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.streams: dict[int, TextStream] = {}

    def update(self, fresh: Iterable[tuple[Request, list[int]]], finished: Iterable[Request]) -> None:
        """Show a step: new tokens per request, and the requests that they ended."""
        for request, tokens in fresh:
            self._show(request.number, self.streams.setdefault(request.number, TextStream()).push(tokens))
        for request in finished:
            rest = self.streams.pop(request.number).flush()
            self._show(request.number, [*rest, f"({len(request.generated)} tokens, {request.finish_reason})"])
        self._refresh()

    def _show(self, number: int, lines: list[str]) -> None:
        for line in lines:
            self.out.write(f"[{number}] {line}\n")

    def _refresh(self) -> None:
        self.out.flush()


class LiveDisplay(LineDisplay):
    """The same on a terminal, with the line that each running request is at kept at the bottom."""

    def __init__(self, out: TextIO) -> None:
        super().__init__(out)
        self._height = 0
        self._drawn_at = 0.0
        self._scroll: list[str] = []

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._drawn_at >= REFRESH_SECONDS or not self.streams:
            self._drawn_at = now
            self._draw()

    def _show(self, number: int, lines: list[str]) -> None:
        self._scroll.extend(f"{self._tag(number)} {line}" for line in lines)

    def _tag(self, number: int) -> str:
        return f"\x1b[{31 + number % 6}m[{number}]\x1b[0m"

    def _draw(self) -> None:
        width = shutil.get_terminal_size().columns - len("[000] ") - 1
        live = [f"{self._tag(number)} {stream.partial[-width:]}" for number, stream in sorted(self.streams.items())]
        erase = f"\x1b[{self._height}F\x1b[J" if self._height else ""
        self.out.write(erase + "".join(line + "\n" for line in (*self._scroll, *live)))
        self.out.flush()
        self._scroll.clear()
        self._height = len(live)


def make_display(out: TextIO) -> LineDisplay:
    """The display that suits `out`."""
    return LiveDisplay(out) if out.isatty() else LineDisplay(out)
