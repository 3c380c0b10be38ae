"""Train the demo's model on the Python standard library's own sources, within a time budget.

    python tools/demo/train.py --minutes 4 --out tools/demo/weights.npz

Needs torch and numpy alone. Four minutes on one H200 are enough; on a CPU use --smoke to see that everything runs.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from checkpoint import DEFAULT_PATH, load_checkpoint, save_checkpoint
from corpus import load_corpus
from model import END_OF_TEXT, ModelConfig, Routing, Transformer, encode
from torch import Tensor

LARGEST_FILE_BYTES = 3_900_000
WARMUP_SHARE = 0.02
BALANCE_WEIGHT = 0.01
SAMPLE_PROMPTS = ("def fibonacci(n):\n", "class Stack:\n", "import os\n")


@dataclass
class Clock:
    """Progress through the time budget, which starts with the program so that compiling counts too."""

    start: float
    end: float

    def progress(self) -> float:
        return min(1.0, (time.monotonic() - self.start) / max(self.end - self.start, 1e-9))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="train.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=4.0, help="wall-clock budget of the whole run")
    parser.add_argument("--steps", type=int, default=None, help="stop after so many steps at the latest")
    parser.add_argument("--out", default=str(DEFAULT_PATH), help="where the weights go (default: %(default)s)")
    parser.add_argument("--stdlib", type=Path, default=None, help="folder to read (default: the running Python's)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=96, help="sequences per step")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--log-every", type=int, default=200, help="steps between progress lines")
    parser.add_argument("--eager", action="store_true", help="do not use torch.compile")
    parser.add_argument("--smoke", action="store_true", help="a very small batch, context and evaluation, for a CPU")
    return parser.parse_args()


def windows(stream: Tensor, starts: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets, `[batch, length]` int64, of the windows that begin at `starts`."""
    span = stream[starts[:, None] + torch.arange(length + 1, device=stream.device)].long()
    return span[:, :-1], span[:, 1:]


@torch.no_grad()
def bits_per_byte(model: Transformer, stream: Tensor, length: int, max_windows: int) -> float:
    """Mean loss over about `max_windows` disjoint windows of held-out text, in bits; END_OF_TEXT is no byte."""
    model.eval()
    starts = torch.arange(0, len(stream) - length - 1, length, device=stream.device)
    starts = starts[:: max(1, len(starts) // max_windows)]  # spread over all held-out files
    total, count = 0.0, 0
    for chunk in starts.split(64):
        inputs, targets = windows(stream, chunk, length)
        targets = targets.masked_fill(targets == END_OF_TEXT, -100)
        with torch.autocast(stream.device.type, torch.bfloat16):
            logits = model(inputs)
        total += F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()
        count += int((targets >= 0).sum())
    model.train()
    return total / count / math.log(2)


def balance_loss(routing: Routing) -> Tensor:
    """1 when tokens spread evenly over the experts, more when few take all. Fedus et al., "Switch", 2021."""
    probs = routing.logits.softmax(-1).flatten(0, -2)
    chosen = (routing.gates.flatten(0, -2) > 0).float()
    load = chosen.mean(0) / chosen.mean(0).sum()
    return probs.shape[-1] * (load * probs.mean(0)).sum()


def make_loss(model: Transformer) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The training loss as one function, so that torch.compile sees forward pass and cross entropy together."""

    def loss(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(inputs.device.type, torch.bfloat16):
            routings: list[Routing] = []
            logits = model(inputs, trace=routings)
        cross_entropy = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        balance = torch.stack([balance_loss(routing) for routing in routings]).mean()
        return cross_entropy + BALANCE_WEIGHT * balance, cross_entropy

    return loss


def make_optimizer(model: Transformer, args: argparse.Namespace) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": args.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, 0.95), fused=args.device != "cpu")


def schedule(progress: float) -> float:
    """Linear warm-up, then a cosine down to 2 % of the peak."""
    if progress < WARMUP_SHARE:
        return max(progress / WARMUP_SHARE, 0.01)
    decay = (progress - WARMUP_SHARE) / (1 - WARMUP_SHARE)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * decay))


def first_loss(model: Transformer, inputs: Tensor, targets: Tensor, args: argparse.Namespace) -> Callable:
    """The loss function to train with, already compiled and run once; eager where torch.compile can't serve."""
    loss = make_loss(model)
    if args.eager or args.device == "cpu":
        return loss
    compiled = torch.compile(loss)
    try:
        compiled(inputs, targets)[0].backward()
    except Exception as error:  # a compiler is missing or fails: training goes on, slower
        print(f"torch.compile is not usable here, training eagerly: {type(error).__name__}: {error}", flush=True)
        return loss
    finally:
        model.zero_grad(set_to_none=True)
    return compiled


def train(model: Transformer, stream: Tensor, args: argparse.Namespace, end: float) -> None:
    """Run AdamW until `end` (monotonic seconds) or `args.steps`."""
    generator = torch.Generator(device=stream.device).manual_seed(args.seed)
    length = model.config.context

    def next_batch() -> tuple[Tensor, Tensor]:
        limit = len(stream) - length - 1
        starts = torch.randint(limit, (args.batch,), generator=generator, device=stream.device)
        return windows(stream, starts, length)

    loss_of = first_loss(model, *next_batch(), args)
    optimizer = make_optimizer(model, args)
    clock = Clock(start=time.monotonic(), end=end)
    step, progress, logged_at = 0, 0.0, clock.start
    while progress < 1.0 and step != args.steps:
        progress = clock.progress()
        if args.steps is not None:
            progress = max(progress, step / args.steps)
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * schedule(progress)
        loss, cross_entropy = loss_of(*next_batch())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 10 == 0 and stream.is_cuda:
            torch.cuda.synchronize()  # keeps the clock honest: the host may otherwise run far ahead
        if step % args.log_every == 0:
            now = time.monotonic()
            rate = args.log_every * args.batch * length / (now - logged_at)
            logged_at = now
            bits = cross_entropy.item() / math.log(2)
            print(f"step {step:6d} {progress:4.0%}  train {bits:.3f} bits/byte  {rate / 1e6:.3f} MB/s", flush=True)
    print(f"{step} steps, {step * args.batch * length / len(stream):.2f} passes over the text", flush=True)


@torch.no_grad()
def sample(model: Transformer, prompt: str, length: int, seed: int, temperature: float = 0.6) -> str:
    """Continue `prompt` by `length` bytes with full forward passes; slow and simple."""
    device = model.head.weight.device
    generator = torch.Generator(device=device).manual_seed(seed)
    tokens = torch.tensor([encode(prompt)], device=device)
    for _ in range(length):
        logits = model(tokens[:, -model.config.context :])[0, -1]
        token = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
        if token.item() >= END_OF_TEXT:
            break
        tokens = torch.cat((tokens, token[None]), dim=1)
    return bytes(tokens[0, 1:].tolist()).decode("utf-8", errors="replace")


def main() -> None:
    begun = time.monotonic()
    args = parse_arguments()
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    config = ModelConfig()
    max_windows = 2000
    if args.smoke:
        config, args.batch, max_windows = replace(config, context=128), 4, 16
        args.log_every = min(args.log_every, 5)
    stream, held_out = (tokens.to(args.device) for tokens in load_corpus(args.seed, args.stdlib))
    model = Transformer(config)
    model.initialise(torch.Generator().manual_seed(args.seed))
    model.to(args.device)
    parameters = sum(p.numel() for p in model.parameters())
    megabytes = f"{len(stream) / 1e6:.1f} MB to train on, {len(held_out) / 1e6:.1f} MB held out"
    print(f"{parameters / 1e6:.2f} M parameters, {megabytes}", flush=True)
    reserve = min(20.0, 0.15 * args.minutes * 60)  # for evaluation, saving and the samples
    train(model, stream, args, end=begun + args.minutes * 60 - reserve)

    before = bits_per_byte(model, held_out, config.context, max_windows)
    size = save_checkpoint(args.out, replace(config, context=ModelConfig.context), model.state_dict())
    model.load_state_dict(load_checkpoint(args.out)[1])
    after = bits_per_byte(model, held_out, config.context, max_windows)
    print(f"held-out loss: {before:.4f} bits/byte in float32, {after:.4f} from {args.out} ({size / 1e6:.2f} MB)")
    model.eval()
    for number, prompt in enumerate(SAMPLE_PROMPTS):
        text = sample(model, prompt, 40 if args.smoke else 300, args.seed + number)
        print(f"--- sample {number + 1}\n{text}", flush=True)
    print(f"{time.monotonic() - begun:.0f} s in all")
    if size > LARGEST_FILE_BYTES:
        raise SystemExit(f"{args.out} has {size} bytes, more than the {LARGEST_FILE_BYTES} that fit the repository")


if __name__ == "__main__":
    main()
