"""Measure the tiles of Hopper's matrix products, and fit the model by which they are chosen.

    python tools/tune/gemm_tiles.py measure     times all tiles of a hundred products; writes gemm_tiles.json into --out
    python tools/tune/gemm_tiles.py regret      how much slower the chosen tiles are than the best that were measured
    python tools/tune/gemm_tiles.py fit         searches for costs with less regret; they go into `Costs` of tile_choice.py

Measure on the GPU that the model is for; the others need none.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from warploom.gemm.backends.hopper.tile_choice import CYCLES_PER_US, Costs, candidate_tiles, choose_tiles, cycles
from warploom.gemm.backends.hopper.tiles import BLOCK_ROWS, H200_SMS, SPAN_BYTES, GemmTiles, ProductShape
from warploom.gemm.scales import ceil_div

ROOT = Path(__file__).resolve().parents[2]
MEASURED = ROOT / "docs" / "benchmarks" / "h200" / "gemm_tiles.json"
TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
BLOCK_LAYERS = ((4096, 7168), (7168, 2048), (28672, 4096), (7168, 16384), (1536, 1536))
GROUPS, GROUP_TOKENS = 64, (16, 64, 128, 256)
BF16_LAYERS = ((4096, 7168), (28672, 4096), (8192, 8192), (1024, 4096))


class Measurement(NamedTuple):
    """A product, and microseconds by tiles."""

    shape: ProductShape
    us: dict[GemmTiles, float]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "tools/tune/gemm_tiles.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("measure", "regret", "fit"))
    parser.add_argument("--measured", type=Path, default=MEASURED, help="times to judge by (default: those of docs)")
    parser.add_argument("--out", type=Path, default=MEASURED.parent, help="folder for gemm_tiles.json")
    parser.add_argument("--seconds", type=float, default=60, help="how long to search")
    options = parser.parse_args(argv)
    if options.what == "measure":
        options.out.mkdir(parents=True, exist_ok=True)
        write(options.out / MEASURED.name, list(measure()))
        return 0
    measurements = read(options.measured)
    if options.what == "fit":
        fit(measurements, options.seconds)
    else:
        show_regret(measurements)
    return 0


def read(path: Path) -> list[Measurement]:
    return [
        Measurement(ProductShape(**one["shape"]), {GemmTiles(*tiles): us for tiles, us in one["us"]})
        for one in json.loads(path.read_text())
    ]


def write(path: Path, measurements: list[Measurement]) -> None:
    rows = [
        {"shape": one.shape._asdict(), "us": [[list(tiles), round(us, 2)] for tiles, us in one.us.items()]}
        for one in measurements
    ]
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


# --- Regret and fit ---


def regret_of(one: Measurement, costs: Costs) -> float:
    """The time of the tiles that these costs choose among those measured, over the best time."""
    chosen = min(one.us, key=lambda tiles: cycles(tiles, one.shape, H200_SMS, costs))
    return one.us[chosen] / min(one.us.values())


def show_regret(measurements: list[Measurement]) -> None:
    regrets = []
    for one in measurements:
        chosen, best = choose_tiles(one.shape, H200_SMS), min(one.us, key=one.us.__getitem__)
        if chosen not in one.us:
            print(f"{label(one.shape)}: {chosen} was not measured")
            continue
        regrets.append(one.us[chosen] / one.us[best])
        if regrets[-1] > 1.03:
            print(f"{label(one.shape)}: {chosen} {one.us[chosen]:.1f} us, but {best} {one.us[best]:.1f} us")
    print(f"{len(regrets)} products: {in_words(regrets)}")


def in_words(regrets: list[float]) -> str:
    mean, most = (100 * (value - 1) for value in (sum(regrets) / len(regrets), max(regrets)))
    return f"{mean:.2f} % slower than the best tiles, {most:.1f} % at most"


def label(shape: ProductShape) -> str:
    kind = "block-scaled" if shape.has_blocks else f"{8 * shape.itemsize} bits"
    groups = "" if shape.groups == 1 else f"{shape.groups} groups "
    return f"{groups}m{shape.tokens} n{shape.n} k{shape.k} {kind}"


def loss(measurements: list[Measurement], costs: Costs) -> float:
    """Regret, most of all where it is large, and a little of how far times are from the model's."""
    total, off, counted = 0.0, 0.0, 0
    for one in measurements:
        slower = math.log(regret_of(one, costs))
        total += slower + 3 * max(0.0, slower - 0.05)
        best = min(one.us.values())
        for tiles, us in one.us.items():
            if us < 1.5 * best:
                off += abs(math.log(cycles(tiles, one.shape, H200_SMS, costs) / CYCLES_PER_US / us))
                counted += 1
    return total / len(measurements) + 0.05 * off / counted


def fit(measurements: list[Measurement], seconds: float) -> None:
    """Change a few costs at a time, and keep what is better."""
    generator, costs = random.Random(1), Costs()
    least, start, tries = loss(measurements, costs), time.monotonic(), 0
    while time.monotonic() - start < seconds:
        tries += 1
        changed = {
            name: getattr(costs, name) * math.exp(generator.gauss(0, 0.25))
            for name in generator.sample(Costs._fields, generator.choice((1, 1, 2, 3)))
        }
        other = costs._replace(**changed)
        found = loss(measurements, other)
        if found < least:
            least, costs = found, other
        if tries % 100 == 0:
            print(f"\r{tries} tries, loss {least:.5f}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    for name, value in costs._asdict().items():
        print(f"    {name}: float = {value:.4g}")
    print(in_words([regret_of(one, costs) for one in measurements]))


# --- Measuring ---


def shapes() -> Iterator[ProductShape]:
    for tokens in TOKENS:
        for n, k in BLOCK_LAYERS:
            yield ProductShape(1, tokens, n, k, 1, has_blocks=True, shares_scales=True)
        for n, k in BF16_LAYERS:
            yield ProductShape(1, tokens, n, k, 2)
    for tokens in GROUP_TOKENS:
        n, k = BLOCK_LAYERS[0]
        yield ProductShape(GROUPS, tokens, n, k, 1, has_blocks=True, shares_scales=True)
        yield ProductShape(GROUPS, tokens, n, k, 2)


def measure() -> Iterator[Measurement]:
    """Time every tiling of every product; those that are far from the model's best are left out."""
    import torch

    from warploom.core.bench.timing import make_timer
    from warploom.gemm.backends.hopper.gemm_kernel import Grouping, Scaling
    from warploom.gemm.backends.hopper.product import Product, prepare_product

    timer = make_timer(torch.device("cuda:0"), budget_s=0.012)
    for shape in shapes():
        scaling = Scaling.OF_BLOCKS if shape.has_blocks else Scaling.NONE
        grouping = Grouping.UNIFORM if shape.groups == 1 else Grouping.OFFSETS
        product = Product(operands_of(shape), shape.tokens, grouping, scaling)
        expected = {tiles: cycles(tiles, shape, H200_SMS) for tiles in candidate_tiles(shape, H200_SMS)}
        near = [tiles for tiles, count in expected.items() if count < 1.6 * min(expected.values())]
        near = list(dict.fromkeys([*near, choose_tiles(shape, H200_SMS)]))  # that may be one of a pair
        prepared = [prepare_product(product, tiles) for tiles in near]
        timings = timer.time(
            {
                str(number): functools.partial(one.run, *ready.addresses())
                for number, (ready, one) in enumerate(prepared)
            }
        )
        us = {tiles: timings[str(number)].us for number, tiles in enumerate(near)}
        best = min(us, key=us.__getitem__)
        print(f"{label(shape)}: {len(us)} tilings, best {best} {us[best]:.1f} us", flush=True)
        yield Measurement(shape, us)


def operands_of(shape: ProductShape) -> Any:
    import torch

    from warploom.gemm.backends.hopper.gemm_kernel import Operands

    dtype = torch.float8_e4m3fn if shape.itemsize == 1 else torch.bfloat16

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, device="cuda", dtype=torch.bfloat16).to(dtype)

    rows = shape.groups * shape.tokens
    out = torch.empty(1, rows, shape.n, device="cuda", dtype=torch.bfloat16)
    tokens, weights = normal(1, rows, shape.k), normal(shape.groups, shape.n, shape.k)
    offsets = None if shape.groups == 1 else torch.arange(0, rows + 1, shape.tokens, device="cuda", dtype=torch.int32)
    operands = Operands(out, tokens, weights, shape.groups, sizes=offsets)
    if not shape.has_blocks:
        return operands
    return operands._replace(
        token_scales=(torch.rand(1, shape.steps, rows, device="cuda") + 0.5).mT,
        weight_scales=torch.rand(shape.groups, ceil_div(shape.n, BLOCK_ROWS), shape.steps, device="cuda") + 0.5,
        granularity=(1, BLOCK_ROWS, SPAN_BYTES),
    )


if __name__ == "__main__":
    sys.exit(main())
