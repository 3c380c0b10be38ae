"""The ``warploom`` command: ``info``, ``explain``, ``build`` and ``cache``.

Each subcommand is one module with ``register(subparsers)``; it sets ``run``, a function of the parsed options that
returns the exit code. Errors that Warploom raises on purpose are one line on standard error and exit code 2.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

__all__ = ["main"]

_EPILOG = """\
Settings are environment variables (WARPLOOM_*); `warploom info` lists them with their values.
The benchmark and the demo, which use every family, are in the repository: python tools/bench, python tools/demo.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    from warploom.core.errors import WarploomError

    parser = _parser()
    options = parser.parse_args(argv)
    if options.run is None:
        parser.print_help()
        return 2
    try:
        return options.run(options)
    except (WarploomError, ImportError, OSError) as error:
        print(f"warploom: {_one_line(error, options.verbose)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("warploom: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    from warploom import __version__
    from warploom.core.cli import build, cache, explain, info

    parser = argparse.ArgumentParser(
        "warploom",
        description="Inspect a Warploom installation, its choice of backends and its compiled kernels.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"warploom {__version__}")
    parser.add_argument("--verbose", action="store_true", help="print errors in full, with compiler logs")
    parser.set_defaults(run=None)
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in (info, explain, build, cache):
        command.register(subparsers)
    return parser


def _one_line(error: BaseException, verbose: bool) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if verbose or len(lines) == 1:
        return "\n".join(lines)
    return f"{lines[0]} (and {len(lines) - 1} more lines: warploom --verbose …)"
