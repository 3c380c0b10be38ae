"""Command line of the demo."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from check import LogitsCheck
from checkpoint import DEFAULT_PATH, CheckpointError, load_checkpoint
from display import make_display
from engine import Engine
from model import ModelConfig, encode
from scheduler import OutOfPagesError, Request, Scheduler
from serve import Sampler, serve, warm_up

from warploom.comm import Communicator
from warploom.core.backends import OPERATORS
from warploom.core.errors import WarploomError
from warploom.core.settings import settings

BLOCK_SEPARATOR = "---"
DEFAULT_PROMPTS = (
    "def fibonacci(n):\n",
    "class Stack:\n",
    "import os\nimport sys\n",
    "def read_lines(filename):\n    ",
    "class TestParser(unittest.TestCase):\n    def ",
    "async def fetch(url, timeout=None):\n",
)
DESCRIPTION = """\
Generates text with a small byte-level language model (trained on the Python standard library, so prompts that look
like Python go best) through a miniature serving engine that uses every operator family of warploom: requests arrive
and end at different times and share each step's launches over one paged key-value cache.
"""
EPILOG = """\
examples:
  python tools/demo
  python tools/demo "def quicksort(items):" "class Matrix:" --max-new-tokens 300
  python tools/demo --check
  mpirun -n 2 python tools/demo --tensor-parallel
"""


class UsageError(Exception):
    """A wrong argument, with what to do about it."""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python tools/demo",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    text = parser.add_argument_group("what to generate")
    text.add_argument("prompt", nargs="*", help="beginnings of texts; default: a few beginnings of Python code")
    text.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help=f"file of prompts, one a line, or blocks of lines between lines of {BLOCK_SEPARATOR!r}",
    )
    text.add_argument("--max-new-tokens", type=positive_int, default=200, metavar="N", help="default: %(default)s")
    text.add_argument(
        "--stop", default="\n\n\n", help="end a text after this string; default: two empty lines, '' for none"
    )
    text.add_argument("--temperature", type=non_negative, default=0.7, help="0 is greedy; default: %(default)s")
    text.add_argument("--top-p", type=share, default=0.9, help="in (0, 1]; default: %(default)s")
    text.add_argument("--seed", type=int, default=0)
    engine = parser.add_argument_group("how to run")
    engine.add_argument("--weights", type=Path, default=DEFAULT_PATH, help="file that tools/demo/train.py wrote")
    engine.add_argument("--device", default=None, help="cpu, cuda or cuda:N; default: a GPU if there is one")
    engine.add_argument("--backend", default=None, help="backend of all operators, or a list: mm_bf16=reference,...")
    engine.add_argument("--arrival-every", type=non_negative_int, default=8, metavar="N", help="steps between arrivals")
    engine.add_argument("--page-size", type=positive_int, default=16, help="tokens in a cache page")
    engine.add_argument("--num-pages", type=positive_int, default=256, help="pages of the cache")
    engine.add_argument("--max-step-tokens", type=positive_int, default=256, help="most tokens of a step, all requests")
    engine.add_argument("--tensor-parallel", action="store_true", help="split the model over the ranks of mpirun")
    engine.add_argument("--check", action="store_true", help="compare all logits with a plain forward pass in torch")
    return parser.parse_args(argv)


def positive_int(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def non_negative_int(text: str) -> int:
    if (value := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def non_negative(text: str) -> float:
    if not (value := float(text)) >= 0:
        raise argparse.ArgumentTypeError(f"{text} is not 0 or more")
    return value


def share(text: str) -> float:
    if not 0 < (value := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not in (0, 1]")
    return value


def read_prompts(args: argparse.Namespace) -> list[str]:
    """Prompts of the command line and the file, or the built-in ones."""
    prompts = list(args.prompt)
    if args.prompts is not None:
        try:
            lines = args.prompts.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--prompts: {error}") from error
        prompts += split_prompts(lines)
        if not prompts:
            raise UsageError(f"--prompts: {args.prompts} holds no prompt")
    return prompts or list(DEFAULT_PROMPTS)


def split_prompts(lines: Sequence[str]) -> list[str]:
    """One prompt a line; if any line is the separator, blocks between such lines instead."""
    if BLOCK_SEPARATOR not in lines:
        return [line for line in lines if line.strip()]
    blocks: list[list[str]] = [[]]
    for line in lines:
        if line == BLOCK_SEPARATOR:
            blocks.append([])
        else:
            blocks[-1].append(line)
    return ["\n".join(block) for block in blocks if any(line.strip() for line in block)]


def make_requests(prompts: Sequence[str], args: argparse.Namespace, config: ModelConfig) -> list[Request]:
    """Requests that arrive one after the other; lengths are bounded by the context that the model was trained on."""
    requests = []
    for number, prompt in enumerate(prompts, start=1):
        tokens = encode(prompt)
        room = config.context - len(tokens)
        if room < 1:
            raise UsageError(f"prompt {number} has {len(tokens)} bytes, the model's context is {config.context}")
        arrival = (number - 1) * args.arrival_every
        requests.append(Request(number, tokens, min(args.max_new_tokens, room), arrival, args.stop.encode()))
    return requests


def open_communicator(args: argparse.Namespace, device: torch.device | None) -> Communicator | None:
    """The ranks to split the model over; None for one process. A GPU without a number means one for each rank."""
    if args.tensor_parallel:
        return Communicator.from_mpi(device=None if device == torch.device("cuda") else device)
    ranks = int(os.environ.get("OMPI_COMM_WORLD_SIZE") or os.environ.get("PMI_SIZE") or 1)
    if ranks > 1:
        raise UsageError(f"mpirun started {ranks} processes: add --tensor-parallel, or start one")
    return None


def parse_device(text: str | None) -> torch.device | None:
    """The wanted device, None for the best one."""
    if text is None:
        return None
    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise UsageError(f"--device {text}: {error}") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {text}: use cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {text}: torch sees {torch.cuda.device_count()} GPUs here")
    return device


def check_backends(wanted: Mapping[str, str]) -> None:
    """Refuse operators and backends that nobody has; what an operator itself refuses, it says when it is called."""
    known = {name for operator in OPERATORS.values() for name in operator.backend_names}
    for operator, backend in wanted.items():
        if operator != "*" and operator not in OPERATORS:
            raise UsageError(f"--backend: no operator {operator!r}; there are {', '.join(sorted(OPERATORS))}")
        if backend not in known | {"auto"}:
            raise UsageError(f"--backend: no backend {backend!r}; there are auto, {', '.join(sorted(known))}")


def run(args: argparse.Namespace, cleanup: ExitStack) -> int:
    """Serve the prompts and print the results; returns the exit status."""
    config, state = load_checkpoint(args.weights)
    requests = make_requests(read_prompts(args), args, config)
    if args.backend:
        cleanup.enter_context(settings.override(backend=args.backend))
        check_backends(settings.backend)
    device = parse_device(args.device)
    communicator = open_communicator(args, device)
    rank, world_size = 0, 1
    if communicator is not None:
        cleanup.enter_context(communicator)
        rank, world_size, device = communicator.rank, communicator.size, communicator.device
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)  # matrices of this size only lose time to waking threads up
    leader = rank == 0

    scheduler = Scheduler(requests, args.num_pages, args.page_size, args.max_step_tokens)
    engine = Engine(config, state, args.num_pages, args.page_size, device, communicator)
    sampler = Sampler(args.temperature, args.top_p, args.seed, engine.timer)
    check = LogitsCheck(config, state, device) if args.check and leader else None
    warm_up_seconds = warm_up(engine, sampler)
    totals = serve(engine, scheduler, sampler, make_display(sys.stdout) if leader else None, check)
    if not leader:
        return 0
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"\n{totals.summary()} on {world_size} x {name}, after a warm-up of {warm_up_seconds:.2f} s")
    print(f"\n{engine.timer.table(totals.seconds)}")
    if check is None:
        return 0
    print(f"\n{check.summary()}")
    return 0 if check.passed else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; 0 is success, 1 a failed check, 2 a wrong argument or a refused request."""
    args = parse_arguments(argv)
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        with ExitStack() as cleanup:
            return run(args, cleanup)
    except (UsageError, CheckpointError, OutOfPagesError, WarploomError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the exit complains once more
        return 0
    except KeyboardInterrupt:
        return 130
