"""Timing on a GPU: graphs and their fallback, the flush, times that follow from the work."""

import pytest
import torch

from warploom.core.bench import host_time_us, make_timer
from warploom.core.bench.ceilings import measure_ceilings

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def timer():
    return make_timer(DEVICE, budget_s=0.05)


def test_times_grow_with_the_work(timer):
    small, large = (torch.randn(count, device=DEVICE) for count in (1 << 24, 1 << 26))
    times = timer.time({"small": lambda: small + 1, "large": lambda: large + 1})
    assert times["small"].mode == times["large"].mode == "graph"
    assert 3 < times["large"].us / times["small"].us < 5
    assert times["small"].p10 <= times["small"].us <= times["small"].p90


def test_a_call_that_cannot_be_captured_is_timed_directly(timer):
    x = torch.randn(1 << 20, device=DEVICE)
    times = timer.time({"synchronising": lambda: x.sum().item(), "plain": lambda: x.sum()})
    assert times["synchronising"].mode == "eager"
    assert times["plain"].mode == "graph"
    # A broken capture must leave nothing behind.
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.isfinite(torch.randn(8, device=DEVICE)).all()
    assert timer.time({"again": lambda: x.sum()})["again"].mode == "graph"


def test_direct_calls_measure_device_time_as_graphs_do(timer):
    x = torch.randn(1 << 26, device=DEVICE)
    eager = make_timer(DEVICE, graph=False, budget_s=0.05)
    first, second = (t.time({"add": lambda: x + 1})["add"] for t in (timer, eager))
    assert (first.mode, second.mode) == ("graph", "eager")
    assert second.us == pytest.approx(first.us, rel=0.15)


def test_the_flush_takes_inputs_out_of_the_cache(timer):
    x = torch.randn(1 << 22, device=DEVICE)  # 16 MiB: inside the L2
    out = torch.empty((), device=DEVICE)

    def read():
        torch.amax(x, 0, out=out)

    cold = timer.time({"read": read})["read"].us
    warm = timer.time({"read": read}, calls=32, flush=False)["read"].us  # the launch of the graph spread over 32
    assert cold > 1.1 * warm


def test_several_calls_in_a_graph_are_divided(timer):
    x = torch.randn(1 << 26, device=DEVICE)
    once = timer.time({"add": lambda: x.add_(1)})["add"].us
    many = timer.time({"add": lambda: x.add_(1)}, calls=8, flush=False)["add"].us
    assert many == pytest.approx(once, rel=0.2)


def test_random_numbers_inside_a_timed_call(timer):
    x = torch.empty(1 << 16, device=DEVICE)
    assert timer.time({"normal": lambda: x.normal_()})["normal"].mode == "graph"


def test_host_time_does_not_include_the_device(timer):
    x = torch.randn(1 << 28, device=DEVICE)
    assert (
        host_time_us(lambda: x.add_(1), device=DEVICE, calls=5) < 0.5 * timer.time({"add": lambda: x.add_(1)})["add"].us
    )


def test_ceilings_are_plausible(timer):
    ceilings = measure_ceilings(timer, DEVICE)
    assert ceilings.memory_gbs > 300
    assert ceilings.tflops["bf16"] > 50
    assert 0.5 < ceilings.launch_us < 30
    if torch.cuda.get_device_capability() >= (9, 0):
        assert ceilings.tflops["fp8"] > 1.3 * ceilings.tflops["bf16"]
