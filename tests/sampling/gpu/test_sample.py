"""The drawing kernels: the tokens of the reference, on every path that they have."""

import itertools
import math

import pytest
import sampling_oracle as oracle
import torch
from chains import chain_id, row_shapes, source_of, used_filters

from warploom import sampling
from warploom.core.testing import cases, random_normal, random_strided
from warploom.sampling.backends.cuda import rows
from warploom.sampling.backends.cuda import sample as launcher
from warploom.sampling.sample import SAMPLE, DrawOptions, draw
from warploom.sampling.steps import SOFTMAX

pytestmark = pytest.mark.gpu(min_arch=80)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
VOCABS = (1, 2, 5, 33, 1000, 1001, 12_000, 24_000, 32000, 50257, 128256, 151936, 262144, 1_000_000)
INF, NAN = math.inf, math.nan
CHAINS = [
    (),
    ("top_k",),
    ("top_p",),
    ("min_p",),
    ("top_k", "top_p"),
    ("top_p", "top_k"),
    ("min_p", "top_p"),
    ("top_k", "top_p", "min_p"),
    ("softmax",),
    ("top_k", "softmax"),
    ("softmax", "top_p"),
    ("softmax", "min_p"),
    ("top_k", "softmax", "top_p"),
    ("softmax", "top_p", "top_k"),
    ("softmax", "min_p", "top_p"),
    ("top_k", "softmax", "top_p", "min_p"),
    ("softmax", "top_p", "min_p", "top_k"),
]
FILTERED = [chain for chain in CHAINS if set(chain) - {SOFTMAX}]


def run(source, chain, backend, filters=None, **options):
    """Tokens and validity."""
    options = {"seed": 11, "offset": 5, "return_valid": True, **options}
    return draw("test", source, chain, used_filters(chain, filters), DrawOptions(backend=backend, **options))


def check(source, chain, filters=None, **options):
    want, want_valid = run(source, chain, "reference", filters, **options)
    tokens, valid = run(source, chain, "cuda", filters, **options)
    assert torch.equal(valid, want_valid)
    assert torch.equal(tokens, want)
    return tokens, valid


@pytest.mark.parametrize(*cases(vocab=VOCABS, spread=[1.0, 6.0], dtype=DTYPES))
@pytest.mark.parametrize("chain", [(), ("softmax",)], ids=chain_id)
def test_plain_draws(case, chain):
    rows = 5 if case.vocab > 200_000 else 24
    logits = random_normal((rows, case.vocab), case.dtype, scale=case.spread, device="cuda")
    check(source_of(chain, logits), chain)


@pytest.mark.parametrize(
    *cases(vocab=[1, 5, 33, 1001, 12_000, 24_000, 32000, 128256, 262144, 1_000_000], spread=[1.0, 6.0])
)
@pytest.mark.parametrize("chain", FILTERED, ids=chain_id)
def test_filtered_draws(case, chain):
    rows = 3 if case.vocab > 200_000 else 12
    logits = random_normal((rows, case.vocab), scale=case.spread, device="cuda")
    check(source_of(chain, logits), chain)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chain", FILTERED, ids=chain_id)
def test_per_row_parameters(chain, dtype):
    top_k = torch.tensor([1, 2, 7, 50, 200, 256, 257, 1000, 2048, 5000, 0, -3, 1 << 30, 30_001, 30_002], device="cuda")
    rows = len(top_k)
    top_p = torch.tensor(
        [0.9, 0.5, 0.1, 0.99, 1.0, 0.0, -1.0, NAN, 0.3, 1e-6, 0.999999, 2.0, 0.7, 0.05, 0.95], device="cuda"
    )
    filters = {
        "top_k": top_k,
        "top_p": top_p,
        "min_p": torch.linspace(-0.1, 1.2, rows, device="cuda"),
        "temperature": torch.linspace(0.2, 3.0, rows, device="cuda"),
    }
    for vocab in (257, 30_001):
        logits = random_normal((rows, vocab), dtype, scale=3.0, device="cuda")
        for offset in range(4):
            check(source_of(chain, logits), chain, filters, offset=offset, seed=torch.arange(rows, device="cuda"))


def adversarial_rows(vocab):
    """Rows with many ties, with two values, sorted, one-hot, masked in ranges, of nearly equal values."""
    ramp = torch.linspace(-8, 8, vocab)
    rows = [
        torch.zeros(vocab),
        ramp,
        ramp.flip(0),
        torch.randint(0, 3, (vocab,)).float(),
        torch.randint(0, 200, (vocab,)).float() / 20,
        torch.where(torch.arange(vocab) % 7 == 0, 2.0, 1.0),
        torch.full((vocab,), -INF).index_fill(0, torch.tensor([vocab // 2]), 1.0),
        torch.full((vocab,), -INF).index_fill(0, torch.arange(0, vocab, max(vocab // 9, 1)), 1.0),
        torch.where(torch.arange(vocab) < vocab // 3, -INF, 0.5 * torch.randn(vocab)),
        torch.where(torch.arange(vocab) < vocab - 20, -30.0, 5.0),
        torch.full((vocab,), 3e38).index_fill(0, torch.tensor([0]), -3e38),
        1e4 + torch.randint(0, 3, (vocab,)) * 2.0**-10,
        torch.randn(vocab).sort().values,
        torch.randn(vocab) * 1e-30,
        torch.randn(vocab) * 60,
    ]
    return torch.stack(rows).cuda()


@pytest.mark.parametrize("vocab", [37, 3000, 128256])
@pytest.mark.parametrize("temperature", [1.0, 0.0, INF, 1e-3])
@pytest.mark.parametrize("chain", [c for c in CHAINS if SOFTMAX in c], ids=chain_id)
def test_adversarial_logits(chain, temperature, vocab):
    torch.manual_seed(3)
    logits = adversarial_rows(vocab)
    for filters in ({}, {"top_k": 1000, "top_p": 0.3, "min_p": 0.5}, {"top_k": 3, "top_p": 0.999}):
        check(logits, chain, {**filters, "temperature": temperature})


@pytest.mark.parametrize("vocab", [37, 3000, 128256])
@pytest.mark.parametrize("chain", [c for c in CHAINS if SOFTMAX not in c], ids=chain_id)
def test_adversarial_probs(chain, vocab):
    torch.manual_seed(3)
    probs = torch.softmax(adversarial_rows(vocab), -1)
    some = torch.rand(7, vocab, device="cuda")
    scales = torch.tensor([1e-38, 1e-44, 1e-20, 1.0, 1e20, 1e36, 1.3e36], device="cuda")
    dyadic = torch.tensor([0.5, 0.25, 0.125, 0.125], device="cuda").repeat(1, vocab // 4 + 1)[:, :vocab]
    source = torch.cat([probs, some * scales.unsqueeze(1), dyadic, -some[:1], some[:1] - 0.5])
    for filters in ({}, {"top_k": 1000, "top_p": 0.75, "min_p": 0.5}, {"top_k": 3, "top_p": 0.5}):
        check(source, chain, filters)


@pytest.mark.parametrize("place", [0, 500, 999])
@pytest.mark.parametrize("chain", CHAINS, ids=chain_id)
def test_bad_rows(chain, place):
    logits = random_normal((12, 1000), device="cuda")
    source = source_of(chain, logits)
    for row, value in enumerate([NAN, INF, -INF, -1.0, 1.1 * 2.0**120]):
        source[2 * row, place] = value
    source[10] = -INF
    source[11] = NAN
    _, valid = check(source, chain)
    assert not bool(valid[[0, 2, 10, 11]].any())
    assert bool(valid[[1, 3, 4, 5, 6, 7, 9]].all())


@pytest.mark.parametrize("temperature", [-1.0, NAN])
@pytest.mark.parametrize("chain", [c for c in CHAINS if SOFTMAX in c], ids=chain_id)
def test_bad_temperatures(chain, temperature):
    filters = {"temperature": torch.tensor([1.0, temperature], device="cuda")}
    _, valid = check(random_normal((2, 1000), device="cuda"), chain, filters)
    assert valid.tolist() == [True, False]


@pytest.mark.parametrize(*cases(vocab=[3, 33, 1001, 128257], padding=[1, 4], dtype=DTYPES))
def test_rows_anywhere_in_memory(case):
    """Gaps hold NaN: a kernel that reads them shows it."""
    for chain in (("softmax",), ("top_k", "softmax", "top_p"), ("softmax", "top_p")):
        rows = random_strided((5, case.vocab), case.dtype, padding=case.padding, device="cuda")
        assert torch.equal(check(rows, chain)[0], check(rows.contiguous(), chain)[0])
        apart = random_strided((4, case.vocab), case.dtype, last_contiguous=False, device="cuda")
        assert torch.equal(check(apart, chain)[0], check(apart.contiguous(), chain)[0])


@pytest.mark.parametrize("chain", [("softmax",), ("top_k", "top_p"), ("softmax", "top_p")], ids=chain_id)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_indices(chain, dtype):
    source = source_of(chain, random_normal((6, 3000), device="cuda"))
    indices = torch.tensor([5, 0, 0, 6, -1, 3, 2**31 - 1, 2], dtype=dtype, device="cuda")
    filters = {"top_k": torch.arange(1, 9, device="cuda"), "top_p": torch.linspace(0.1, 1, 8, device="cuda")}
    _, valid = check(source, chain, filters, indices=indices)
    assert valid.tolist() == [True, True, True, False, False, True, False, True]
    nothing = torch.empty(0, 3000, device="cuda")
    assert not bool(run(nothing, chain, "cuda", filters, indices=indices)[1].any())


@pytest.mark.parametrize("parts", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_launch_shape(dtype, parts, monkeypatch):
    """Also those that this GPU would not choose, such as rows that are read again."""
    if parts > 1 and torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("clusters need compute capability 9")
    monkeypatch.setattr(launcher, "stream_parts", lambda *_: parts)
    for vocab in (7, 5000, 40_003):
        for shape in row_shapes(parts, vocab, dtype.itemsize):
            for name in ("row_shape", "selection_shape"):
                monkeypatch.setattr(launcher, name, lambda *_, shape=shape: shape)
            logits = random_normal((9, vocab), dtype, scale=3.0, device="cuda")
            for chain in CHAINS:
                check(source_of(chain, logits), chain, {"top_k": 3000 if shape.resident else 20})


@pytest.mark.parametrize("chain", CHAINS, ids=chain_id)
def test_a_row_by_itself_and_in_any_batch(chain):
    source = source_of(chain, random_normal((70, 40_000), scale=2.0, device="cuda"))
    seeds = torch.arange(70, device="cuda")
    whole, _ = run(source, chain, "cuda", seed=seeds)
    for _ in range(3):
        assert torch.equal(run(source, chain, "cuda", seed=seeds)[0], whole)
    for some in (slice(0, 1), slice(33, 40), slice(5, 69)):
        assert torch.equal(run(source[some], chain, "cuda", seed=seeds[some].clone())[0][1:], whole[some][1:])


DISTRIBUTIONS = {
    "random": torch.randn(100),
    "peaked": 6 * torch.randn(100),
    "uniform": torch.zeros(100),
    "tied": torch.randint(0, 4, (100,)).float(),
    "one of three": torch.full((100,), -INF).index_fill(0, torch.tensor([1, 50, 98]), 0.0),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("chain", [c for c in CHAINS if SOFTMAX in c], ids=chain_id)
def test_draws_follow_the_distribution(chain, name):
    draws = 40_000
    logits = DISTRIBUTIONS[name].cuda()
    filters = {"top_k": 30, "top_p": 0.8, "min_p": 0.05, "temperature": 1.3}
    tokens, valid = run(logits.expand(draws, -1), chain, "cuda", filters, seed=17)
    assert bool(valid.all())
    used = {step: filters[step] for step in chain if step in filters}
    probs = sampling.renorm.renorm("test", logits[None], chain, {**used, "temperature": 1.3}, backend="reference")[0]
    assert oracle.chi_square_fits(oracle.histogram(tokens, 100), probs.double().cpu().numpy())


@pytest.mark.parametrize("chain", CHAINS, ids=chain_id)
def test_graph_replays_draw_anew_and_wait_for_nothing(chain):
    source = source_of(chain, random_normal((16, 5000), device="cuda"))
    offset = torch.zeros(1, dtype=torch.int64, device="cuda")
    run(source, chain, "cuda", offset=offset)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(source, chain, "cuda", offset=offset)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            tokens, _ = run(source, chain, "cuda", offset=offset)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    offset.zero_()
    for step in range(3):
        graph.replay()
        assert torch.equal(tokens, run(source, chain, "reference", offset=step)[0])
        assert offset.tolist() == [step + 1]


def test_auto_takes_the_kernel():
    for chain in CHAINS:
        run(source_of(chain, random_normal((2, 100), device="cuda")), chain, "auto")
        assert SAMPLE.last.name == "cuda"


def test_addresses_beyond_32_bits():
    rows, vocab = 17_000, 128_256  # 2.18e9 elements
    if torch.cuda.mem_get_info()[0] < 20e9:
        pytest.skip("needs 20 GB")
    logits = torch.zeros(rows, vocab, dtype=torch.float16, device="cuda")
    logits[-3:] = random_normal((3, vocab), torch.float16, device="cuda")
    seeds = torch.arange(rows, device="cuda")
    for chain in (("softmax",), ("top_k", "softmax", "top_p")):
        tokens, _ = run(logits, chain, "cuda", seed=seeds)
        want, _ = run(logits[-3:].clone(), chain, "reference", seed=seeds[-3:].clone())
        assert torch.equal(tokens[-3:], want)


def test_shapes_leave_no_row_out():
    for vocab in VOCABS:
        for itemsize, batch in itertools.product((2, 4), (1, 20, 1000)):
            shape = rows.row_shape(batch, vocab, itemsize, 90, 132)
            assert not shape.resident or shape.parts * shape.share_bytes >= vocab * itemsize


@pytest.mark.gpu(count=2)
def test_another_device_than_the_current_one():
    logits = random_normal((4, 5000), device="cuda:1")
    with torch.cuda.device(0):
        check(logits, ("top_k", "softmax", "top_p"))


@pytest.mark.parametrize(*cases(top_p=[0.99, 0.9, 0.5, 0.2, 0.05, 1e-3], spread=[0.1, 1.0, 6.0], dtype=DTYPES))
def test_nuclei_of_many_rows(case):
    """Rows that are settled by the first arrivals, by later ones, and by the second kernel."""
    logits = random_normal((400, 32000), case.dtype, scale=case.spread, device="cuda")
    for chain in (("softmax", "top_p"), ("top_p",)):
        check(source_of(chain, logits), chain, {"top_p": case.top_p})


@pytest.mark.parametrize("start", [0, 30_000, 127_300])
@pytest.mark.parametrize("chain", [c for c in CHAINS if SOFTMAX in c], ids=chain_id)
def test_rows_masked_to_a_range(chain, start):
    """All tokens that can be drawn are in the part of one block, as a grammar leaves them."""
    for spread, kept in ((0.0, 900), (0.5, 900), (2.0, 300)):
        logits = torch.full((40, 128256), -INF, device="cuda")
        logits[:, start : start + kept] = random_normal((40, kept), scale=spread, device="cuda")
        for filters in ({}, {"top_k": 700, "top_p": 0.6}, {"top_k": 100_000, "top_p": 0.3, "min_p": 1e-3}):
            for count in (3, 40):
                check(logits[:count], chain, filters)


@pytest.mark.parametrize(
    "chain", [("softmax", "top_p"), ("top_k", "softmax", "top_p"), ("top_p", "top_k")], ids=chain_id
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_more_rows_left_than_blocks_for_them(chain, dtype, monkeypatch):
    """Every cluster of the last kernel draws several rows after one another, aligned and not, good and bad."""
    monkeypatch.setattr(launcher, "_pending_rows", lambda batch, parts, sms: 3)
    generator = torch.Generator("cuda").manual_seed(2)
    logits = torch.randn(60, 24_001, device="cuda", generator=generator, dtype=torch.float32)
    logits[::3] = 0.5  # ties: too many for the first kernel
    logits[7::10] = NAN
    logits[8::10] = -INF
    source = source_of(chain, logits.to(dtype))
    indices = torch.arange(200, device="cuda", dtype=torch.int32) % 64 - 2  # some are none
    k = torch.randint(0, 20_000, (200,), device="cuda", generator=generator, dtype=torch.int32)
    p = torch.rand(200, device="cuda", generator=generator) * 0.6 + 0.4
    check(source, chain, {"top_k": k, "top_p": p}, indices=indices)
