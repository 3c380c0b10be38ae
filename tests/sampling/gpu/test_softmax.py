"""The softmax kernel against float64, on every path that it has."""

import math

import pytest
import sampling_oracle as oracle
import torch

from warploom.core.testing import assert_close, cases, poison_like, random_normal, random_strided
from warploom.sampling import softmax
from warploom.sampling.backends.cuda import softmax as launcher
from warploom.sampling.backends.cuda.softmax import LaunchShape
from warploom.sampling.softmax import SOFTMAX

pytestmark = pytest.mark.gpu(min_arch=80)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
VOCABS = (1, 2, 3, 7, 31, 32, 33, 255, 1000, 32000, 50257, 128256, 131072, 151936, 262144, 1_000_000)
INF, NAN = math.inf, math.nan


def expected(logits, temperature=1.0):
    """Float64 softmax on the GPU."""
    scale = torch.as_tensor(temperature, dtype=torch.float64, device=logits.device).reshape(-1, 1)
    return torch.softmax(logits.double() / scale, dim=-1)


def run(logits, *arguments, **options):
    """Through the kernel, into a poisoned output."""
    out = poison_like(torch.empty(logits.shape, device=logits.device))
    return softmax(logits, *arguments, out=out, backend="cuda", **options)


@pytest.mark.parametrize(*cases(vocab=VOCABS, batch=[1, 5], dtype=DTYPES))
def test_matches_float64(case):
    logits = random_normal((case.batch, case.vocab), case.dtype, scale=3.0, device="cuda")
    assert_close(run(logits), expected(logits))


@pytest.mark.parametrize(*cases(vocab=[3, 50257, 128256, 1_000_000], dtype=DTYPES))
def test_per_row_temperature(case):
    temperature = torch.tensor([1e-3, 0.3, 1.0, 30.0, 1e4, 0.7], device="cuda")
    logits = random_normal((6, case.vocab), case.dtype, device="cuda")
    want = expected(logits, temperature)
    assert_close(run(logits, temperature), want)
    assert_close(run(logits, temperature.repeat_interleave(3)[::3]), want)
    for row, value in enumerate(temperature.tolist()):
        assert_close(run(logits, value)[row], want[row])
        assert_close(run(logits, temperature[row])[row], want[row])


@pytest.mark.parametrize(*cases(vocab=[2, 33, 1001, 128257], padding=[1, 3, 8], dtype=DTYPES))
def test_rows_anywhere_in_memory(case):
    """Gaps hold NaN: a kernel that reads beyond its row shows it, one that writes there too."""
    logits = random_strided((5, case.vocab), case.dtype, padding=case.padding, device="cuda")
    storage = torch.full((5, case.vocab + 7), 7.0, device="cuda")
    for lead in range(4):
        storage.fill_(7.0)
        out = storage[:, lead : lead + case.vocab]
        softmax(logits, out=out, backend="cuda")
        assert_close(out, expected(logits))
        assert bool((storage[:, :lead] == 7).all())
        assert bool((storage[:, lead + case.vocab :] == 7).all())


def test_strided_elements_and_empty_batches():
    logits = random_strided((4, 300), torch.bfloat16, last_contiguous=False, device="cuda")
    assert_close(run(logits), expected(logits))
    assert softmax(torch.empty(0, 300, device="cuda"), backend="cuda").shape == (0, 300)


@pytest.mark.parametrize(("row", "temperature", "probs"), oracle.ODD_ROWS)
@pytest.mark.parametrize("per_row", [False, True])
def test_stated_results_of_odd_rows(row, temperature, probs, per_row):
    logits = torch.tensor([row, [0.0] * 3], device="cuda")
    given = torch.tensor([temperature, 1.0], device="cuda") if per_row else temperature
    torch.testing.assert_close(run(logits, given)[0].cpu(), torch.tensor(probs), equal_nan=True)


@pytest.mark.parametrize(*cases(vocab=[5, 1001, 128256, 151936, 1_000_000], dtype=DTYPES))
def test_specials_at_any_place(case):
    places = sorted({0, 1, case.vocab // 3, case.vocab - 2, case.vocab - 1})
    logits = random_normal((len(places) * 3 + 2, case.vocab), case.dtype, device="cuda")
    logits[-1] = -INF
    for i, place in enumerate(places):
        logits[3 * i, place] = NAN
        logits[3 * i + 1, place] = INF
        logits[3 * i + 2, :] = -INF
        logits[3 * i + 2, place] = -3.0
    probs = run(logits)
    for i, place in enumerate(places):
        assert bool(torch.isnan(probs[3 * i : 3 * i + 2]).all())
        assert float(probs[3 * i + 2, place]) == 1.0
        assert float(probs[3 * i + 2].sum()) == 1.0
    assert_close(probs[-2], expected(logits[-2:-1])[0])
    assert bool((probs[-1] == 0).all())


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("blocks", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_launch_shape(dtype, blocks, resident, monkeypatch):
    """Also those that this GPU would not choose, such as the path without clusters."""
    if blocks > 1 and torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("clusters need compute capability 9")
    for threads in (32, 96, 512):
        vocab = 16001 if not resident else min(16001, blocks * threads * 8 * 16 // dtype.itemsize)
        monkeypatch.setattr(
            launcher, "launch_shape", lambda *_, threads=threads: LaunchShape(blocks, threads, resident)
        )
        logits = random_normal((9, vocab), dtype, scale=4.0, device="cuda")
        assert_close(run(logits, 0.8), expected(logits, 0.8))


@pytest.mark.parametrize("vocab", [1000, 32000, 128256, 262144, 1_000_000])
def test_same_bits_on_every_run_and_in_every_batch(vocab):
    logits = random_normal((33, vocab), device="cuda")
    whole = run(logits)
    for _ in range(3):
        assert torch.equal(run(logits), whole)
    for rows in (slice(0, 1), slice(7, 20), slice(32, 33)):
        assert torch.equal(run(logits[rows]), whole[rows])


@pytest.mark.parametrize("vocab", [1000, 128256])
def test_graph_replay(vocab):
    logits, temperature = torch.zeros(8, vocab, device="cuda"), torch.ones(8, device="cuda")
    out = torch.empty_like(logits)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        softmax(logits, temperature, out=out, backend="cuda")
    for _ in range(3):
        logits.normal_()
        temperature.uniform_(0.5, 2.0)
        graph.replay()
        assert_close(out, expected(logits, temperature))


def test_auto_takes_the_kernel_and_waits_for_nothing():
    logits = random_normal((4, 5000), device="cuda")
    softmax(logits)
    torch.cuda.set_sync_debug_mode("error")
    try:
        softmax(logits, torch.ones(4, device="cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert SOFTMAX.last.name == "cuda"


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_other_backends_on_the_gpu(backend):
    logits = random_normal((4, 5000), device="cuda")
    assert_close(softmax(logits, 0.7, backend=backend), expected(logits, 0.7))


def test_addresses_beyond_32_bits():
    rows, vocab = 17_000, 128_256  # 2.18e9 elements
    if torch.cuda.mem_get_info()[0] < 20e9:
        pytest.skip("needs 20 GB")
    logits = torch.zeros(rows, vocab, dtype=torch.float16, device="cuda")
    logits[-3:] = random_normal((3, vocab), torch.float16, device="cuda")
    probs = softmax(logits, backend="cuda")
    assert_close(probs[-3:], expected(logits[-3:]))
    assert float((probs[::500, ::1000] * vocab - 1).abs().max()) < 1e-5


@pytest.mark.gpu(count=2)
def test_another_device_than_the_current_one():
    logits = random_normal((4, 5000), device="cuda:1")
    with torch.cuda.device(0):
        assert_close(run(logits), expected(logits))
