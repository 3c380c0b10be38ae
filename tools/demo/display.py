"""Shows the text of several requests while it is generated."""

from __future__ import annotations

import codecs
import shutil
import time
from typing import TextIO

from model import END_OF_TEXT

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
    return "".join(c if c.isprintable() or c == "\n" else "    " if c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


class LineDisplay:
    """Prints each line when it is complete, after the number of its request. For files and pipes."""

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.streams: dict[int, TextStream] = {}

    def push(self, number: int, tokens: list[int]) -> None:
        """Add tokens to the text of request `number`."""
        self._show(number, self.streams.setdefault(number, TextStream()).push(tokens))

    def finish(self, number: int, note: str) -> None:
        """End the text of a request; `note` says why it ended."""
        rest = self.streams.pop(number, TextStream()).flush()
        self._show(number, [*rest, f"({note})"])

    def refresh(self) -> None:
        """Called once a step."""
        self.out.flush()

    def _show(self, number: int, lines: list[str]) -> None:
        for line in lines:
            self.out.write(f"[{number}] {line}\n")


class LiveDisplay(LineDisplay):
    """The same on a terminal, with the line that each running request is at kept at the bottom."""

    def __init__(self, out: TextIO) -> None:
        super().__init__(out)
        self._height = 0
        self._drawn_at = 0.0
        self._scroll: list[str] = []

    def refresh(self) -> None:
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
