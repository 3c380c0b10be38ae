"""The selection kernel: values and indices of a stable sort, exactly."""

import math

import pytest
import torch

from warploom.core.testing import cases, random_normal, random_strided
from warploom.sampling import top_k
from warploom.sampling.backends.cuda import topk as launcher
from warploom.sampling.backends.cuda.rows import RowShape
from warploom.sampling.topk import TOP_K

pytestmark = pytest.mark.gpu(min_arch=80)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
INF, NAN = math.inf, math.nan
EXACT = {"sorted": True, "deterministic": True}


def check(source, k):
    values, indices = top_k(source, k, **EXACT, backend="cuda")
    want, want_indices = top_k(source, k, **EXACT, backend="reference")
    assert torch.equal(indices, want_indices)
    assert torch.equal(values.nan_to_num(nan=7.0), want.nan_to_num(nan=7.0))
    assert torch.equal(torch.isnan(values), torch.isnan(want))


@pytest.mark.parametrize(
    *cases(vocab=[1, 2, 5, 33, 1001, 12_000, 24_000, 32000, 128256, 262144, 1_000_000], dtype=DTYPES)
)
@pytest.mark.parametrize("k", [1, 2, 50, 256, 257, 512, 513, 2047, 2048])
def test_random_rows(case, k):
    check(random_normal((4, case.vocab), case.dtype, scale=3.0, device="cuda"), min(k, case.vocab))


@pytest.mark.parametrize("k", [1, 7, 50, 256, 300, 700, 2048])
@pytest.mark.parametrize("vocab", [300, 5000, 128256])
def test_adversarial_rows(vocab, k):
    torch.manual_seed(1)
    ramp = torch.linspace(-8, 8, vocab)
    few = torch.full((vocab,), -INF).index_fill(0, torch.arange(0, vocab, vocab // 9), 1.0)
    rows = [
        torch.zeros(vocab),
        ramp,
        ramp.flip(0),
        torch.randint(0, 3, (vocab,)).float(),
        torch.randint(0, 500, (vocab,)).float(),
        few,
        torch.full((vocab,), -INF),
        torch.full((vocab,), INF),
        torch.full((vocab,), NAN),
        torch.where(torch.arange(vocab) % 100 == 3, NAN, ramp),
        # Not NaN with a sign: torch's sort puts it last on a GPU, first on a CPU.
        torch.where(torch.arange(vocab) % 2 == 0, 0.0, -0.0),
        torch.where(torch.arange(vocab) < vocab - 20, -30.0, 5.0),
        torch.randn(vocab) * 1e-40,
        torch.cat([torch.randn(vocab - 64), torch.full((64,), 9.0)]),
    ]
    check(torch.stack(rows).cuda(), min(k, vocab))


@pytest.mark.parametrize(*cases(vocab=[33, 1001, 40_003], padding=[1, 4], dtype=DTYPES))
def test_rows_anywhere_in_memory(case):
    check(random_strided((5, case.vocab), case.dtype, padding=case.padding, device="cuda"), 30)
    check(random_strided((5, case.vocab), case.dtype, last_contiguous=False, device="cuda"), 30)
    source = random_normal((5, case.vocab), case.dtype, device="cuda")
    out = (
        torch.empty(5, 60, dtype=case.dtype, device="cuda")[:, ::2],
        torch.empty(30, 5, dtype=torch.int64, device="cuda").t(),
    )
    top_k(source, 30, **EXACT, out=out, backend="cuda")
    want = top_k(source, 30, **EXACT, backend="reference")
    assert torch.equal(out[0], want[0])
    assert torch.equal(out[1], want[1])


@pytest.mark.parametrize("parts", [1, 2, 4, 8, 16])
def test_every_launch_shape(parts, monkeypatch):
    if parts > 1 and torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("clusters need compute capability 9")
    for vocab in (7, 5000, 40_003):
        tiles = math.ceil(vocab * 4 / 4096)
        for resident in (True, False):
            shape = RowShape(parts, resident, math.ceil(tiles / parts) * 4096 if resident else 0)
            monkeypatch.setattr(launcher, "selection_shape", lambda *_, shape=shape: shape)
            for k in (50, 1500):
                check(random_normal((9, vocab), scale=3.0, device="cuda"), min(k, vocab))
                check(torch.randint(0, 3, (3, vocab), device="cuda").float(), min(k, vocab))


def test_graph_replay_and_no_waiting():
    source = random_normal((8, 20_000), device="cuda")
    top_k(source, 50, **EXACT)
    assert TOP_K.last.name == "cuda"
    torch.cuda.set_sync_debug_mode("error")
    try:
        top_k(source, 50, **EXACT)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        values, indices = top_k(source, 50, **EXACT, backend="cuda")
    for _ in range(3):
        source.normal_()
        graph.replay()
        want = top_k(source, 50, **EXACT, backend="reference")
        assert torch.equal(values, want[0])
        assert torch.equal(indices, want[1])
