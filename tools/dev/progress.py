"""Numbered steps with their times; the output of the commands behind them goes to a log file."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

Answer = TypeVar("Answer")
_TAIL_LINES = 25
_POLL_SECONDS = 0.2


class StepFailed(Exception):
    """A step failed; the message says what to look at."""


class Steps:
    """Prints ``[2/4] torch, CPU build ... 20.1 s`` for each step.

    Parameters
    ----------
    total : int
        Number of steps, for the counter.
    log : Path
        Where the commands' output is appended.
    folder : Path
        The commands' current folder.
    """

    def __init__(self, total: int, log: Path, folder: Path) -> None:
        self._total = total
        self._log = log
        self._folder = folder
        self._done = 0
        log.parent.mkdir(parents=True, exist_ok=True)

    def run(self, what: str, *commands: Sequence[object], env: Mapping[str, str] | None = None, hint: str = "") -> None:
        """Run one step's commands one after the other; `hint` is what to try when one fails."""
        line = self._begin(what)
        start = time.monotonic()
        for command in commands:
            words = [str(word) for word in command]
            offset = self._log.stat().st_size if self._log.exists() else 0
            with self._log.open("a") as log:
                log.write(f"$ {shlex.join(words)}\n")
                log.flush()
                process = subprocess.Popen(
                    words, cwd=self._folder, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
                )
                code = self._wait(process, line, start)
            if code != 0:
                raise StepFailed(self._report(what, words, code, offset, hint))
        _clear(line)
        print(f"{time.monotonic() - start:.1f} s", flush=True)

    def ask(self, what: str, question: Callable[[], Answer]) -> Answer:
        """One step that is a short computation; its answer is printed."""
        self._begin(what)
        start = time.monotonic()
        answer = question()
        print(f"{answer} ({time.monotonic() - start:.1f} s)", flush=True)
        return answer

    def _begin(self, what: str) -> str:
        self._done += 1
        line = f"[{self._done}/{self._total}] {what} ... "
        print(line, end="", flush=True)
        return line

    def _wait(self, process: subprocess.Popen[bytes], line: str, start: float) -> int:
        try:
            while process.poll() is None:
                time.sleep(_POLL_SECONDS)
                if sys.stdout.isatty():
                    _clear(line)
                    print(
                        _fitted(f"{time.monotonic() - start:.0f} s  {_last_line(self._log)}", line), end="", flush=True
                    )
        except BaseException:
            process.terminate()
            process.wait()
            raise
        return process.returncode

    def _report(self, what: str, command: list[str], code: int, offset: int, hint: str) -> str:
        with self._log.open(errors="replace") as log:
            log.seek(offset)
            tail = log.read().splitlines()[1:][-_TAIL_LINES:]
        lines = [
            "failed",
            "",
            *tail,
            "",
            f"{what}: `{shlex.join(command)}` exited with {code}.",
            f"The whole log: {self._log}",
        ]
        return "\n".join([*lines, hint] if hint else lines)


def _clear(line: str) -> None:
    if sys.stdout.isatty():
        print(f"\r\033[K{line}", end="")


def _fitted(text: str, line: str) -> str:
    return text[: max(0, shutil.get_terminal_size().columns - len(line) - 1)]


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 300))
        lines = file.read().decode(errors="replace").split("\n")
    return next((text.strip() for text in reversed(lines) if text.strip()), "")
