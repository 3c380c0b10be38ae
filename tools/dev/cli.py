"""The command line: ``demo`` and ``test`` set up what they need, ``install`` only sets up."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import checks
import environment
from progress import StepFailed

ROOT = environment.ROOT


def main() -> int:
    arguments, rest = _parse(sys.argv[1:])
    try:
        return arguments.action(arguments, rest)
    except StepFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="python3 tools/dev", description="Set up Warploom's development environment.")
    commands = parser.add_subparsers(required=True, metavar="demo | test | install")
    demo = commands.add_parser(
        "demo",
        help="set up and run the demo; further arguments go to it",
        epilog="Further arguments go to the demo; `demo -- --help` lists them.",
        allow_abbrev=False,
    )
    demo.set_defaults(action=_demo)
    test = commands.add_parser("test", help="set up and run lint, types and every test that this machine can run")
    test.add_argument("--quick", action="store_true", help="leave out slow tests, packaging and most ranks")
    test.add_argument("--only", choices=checks.GROUPS, action="append", help="run this part alone; may be repeated")
    test.set_defaults(action=_test)
    install = commands.add_parser("install", help="set up only")
    install.add_argument(
        "--offline",
        action="store_true",
        help="install the five packages into the Python that runs this, using no package index",
    )
    install.set_defaults(action=_install)
    for command in (demo, test, install):
        command.add_argument("--venv", type=Path, default=ROOT / ".venv", help="the environment; default: %(default)s")
        command.add_argument("--recreate", action="store_true", help="delete the environment and make it anew")
        command.add_argument("--any-torch", action="store_true", help="take whichever torch pip offers, CUDA or not")
    return _split(parser, argv)


def _split(parser: argparse.ArgumentParser, argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse our options; what the demo's command line has beyond them, and all after ``--``, is the demo's."""
    end = argv.index("--") if "--" in argv else len(argv)
    arguments, unknown = parser.parse_known_args(argv[:end])
    rest = unknown + argv[end + 1 :]
    if rest and arguments.action is not _demo:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    return arguments, rest


def _prepare(arguments: argparse.Namespace) -> environment.Environment:
    return environment.prepare(arguments.venv, recreate=arguments.recreate, any_torch=arguments.any_torch)


def _demo(arguments: argparse.Namespace, rest: list[str]) -> int:
    python = _prepare(arguments)
    return subprocess.run([python.executable, ROOT / "tools" / "demo", *rest], env=python.variables()).returncode


def _test(arguments: argparse.Namespace, rest: list[str]) -> int:
    python = _prepare(arguments)
    return checks.run(python, only=arguments.only or [], quick=arguments.quick)


def _install(arguments: argparse.Namespace, rest: list[str]) -> int:
    if arguments.offline:
        environment.install_offline(Path(sys.executable))
    else:
        python = _prepare(arguments)
        print(f"ready: {os.path.relpath(python.executable)}")
    return 0
