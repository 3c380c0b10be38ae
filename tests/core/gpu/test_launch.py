"""Launching: streams, graphs, shared memory, clusters, dependent launches, TMA descriptors, threads, devices."""

import sys
import threading
from pathlib import Path

import pytest
import torch

from warploom.core.errors import CompileError

sys.path.insert(0, str(Path(__file__).parents[1]))
import toy_kernels as toy

pytestmark = pytest.mark.gpu


def add(x, value, **options):
    out = torch.full_like(x, float("nan"))
    params = toy.AddParams(x=x, out=out, n=x.numel(), value=value)
    toy.ADD.load(x.device).launch(-(-x.numel() // 256), 256, params, **options)
    return out


def test_launch_on_the_current_stream():
    x = torch.randn(100_003, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        y = x * 2
        out = add(y, 1.0)
    stream.synchronize()
    assert torch.equal(out, x * 2 + 1)


def test_empty_grid_launches_nothing():
    x = torch.empty(0, device="cuda")
    toy.ADD.load(x.device).launch(0, 256, toy.AddParams(x=x, out=x, n=0, value=1.0))
    torch.cuda.synchronize()


def test_capture_and_replay_even_as_the_first_use():
    fresh = toy.toy("add_kernel", (toy.AddParams,), kThreads=192)  # compiled and loaded inside the capture
    x = torch.randn(1000, device="cuda")
    out = torch.empty_like(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fresh.load(0).launch(6, 192, toy.AddParams(x=x, out=out, n=1000, value=3.0))
    for _ in range(3):
        x.normal_()
        graph.replay()
        assert torch.equal(out, x + 3)


@pytest.mark.parametrize("kilobytes", [16, 48, 100, 227])
def test_dynamic_shared_memory(kilobytes):
    columns = kilobytes * 256 - (64 if kilobytes == 227 else 0)  # the kernel's static scratch counts too
    x = torch.randint(-8, 8, (5, columns), device="cuda").float()
    out = torch.full((5,), float("nan"), device="cuda")
    toy.ROW_SUM.load(0).launch(5, 128, toy.RowSumParams(x=x, out=out, columns=columns), smem=columns * 4)
    assert torch.equal(out, x.sum(1))


def test_too_much_shared_memory_is_an_error_with_the_size():
    x = torch.zeros(1, device="cuda")
    with pytest.raises(CompileError, match="300000"):
        toy.ROW_SUM.load(0).launch(1, 128, toy.RowSumParams(x=x, out=x, columns=1), smem=300_000)


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
def test_clusters(size):
    out = torch.zeros(size * 3, device="cuda")
    toy.CLUSTER.load(0).launch(size * 3, 32, toy.ClusterParams(out=out), cluster=size)
    assert out.tolist() == [size * (size + 1) / 2] * (size * 3)


def test_programmatic_dependent_launch_keeps_the_order():
    x = torch.randn(1 << 20, device="cuda")
    out = x
    for step in range(20):
        out = add(out, float(step), pdl=True)
    torch.testing.assert_close(out, x + sum(range(20)), rtol=1e-5, atol=1e-4)


def test_dependent_launch_inside_a_graph():
    x = torch.randn(1 << 16, device="cuda")
    add(x, 1.0, pdl=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = add(add(x, 1.0, pdl=True), 2.0, pdl=True)
    x.normal_()
    graph.replay()
    torch.testing.assert_close(out, x + 3)


def test_tile_copy_by_descriptors():
    from warploom.core.descriptors import tensor_map

    x = torch.randn(100, 200, device="cuda")
    out = torch.full_like(x, float("nan"))
    source, target = (tensor_map(t, (16, 32), swizzle="none") for t in (x, out))
    tiles_x, tiles_y = -(-200 // 32), -(-100 // 16)
    toy.TILE_COPY.load(0).launch(tiles_x * tiles_y, 32, source, target, toy.TileParams(tiles_x=tiles_x))
    assert torch.equal(out, x)


def test_launch_from_new_threads():
    x = torch.randn(1000, device="cuda")
    results, errors = [], []

    def work():
        try:
            results.append(add(x, 1.0))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.cuda.synchronize()
    assert not errors
    assert all(torch.equal(out, x + 1) for out in results)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_second_device_while_the_first_is_current():
    x = torch.randn(1000, device="cuda:1")
    with torch.cuda.device(1):
        out = add(x, 1.0)
    assert torch.equal(out, x + 1)
