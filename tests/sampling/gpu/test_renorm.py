"""The filtering kernels: the set that the reference keeps, exactly, and its probabilities."""

import math

import pytest
import torch

from warploom import sampling
from warploom.core.testing import assert_close, cases, poison_like, random_normal, random_strided
from warploom.sampling.backends.cuda import renorm as launcher
from warploom.sampling.backends.cuda.rows import RowShape
from warploom.sampling.renorm import RENORM, TOP_K_MASK, renorm
from warploom.sampling.steps import SOFTMAX

pytestmark = pytest.mark.gpu(min_arch=80)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
INF, NAN = math.inf, math.nan
CHAINS = [
    ("top_k",),
    ("top_p",),
    ("min_p",),
    ("top_k", "top_p"),
    ("top_p", "top_k"),
    ("min_p", "top_p"),
    ("softmax", "top_p"),
    ("top_k", "softmax"),
    ("softmax", "min_p"),
    ("top_k", "softmax", "top_p", "min_p"),
    ("softmax", "top_p", "min_p", "top_k"),
]


def chain_id(chain):
    return "-".join(chain)


def source_of(chain, logits):
    return logits if SOFTMAX in chain else torch.softmax(logits.float(), -1).to(logits.dtype)


def check(source, chain, filters=None, out=None):
    given = {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.02, **(filters or {})}
    used = {name: given[name] for name in given if name in chain or (name == "temperature" and SOFTMAX in chain)}
    want = renorm("test", source, chain, used, backend="reference")
    out = poison_like(torch.empty_like(want)) if out is None else out
    renorm("test", source, chain, used, out=out, backend="cuda")
    # A probability may round to 0 in 16 bits on one side alone.
    assert not bool(((out == 0) != (want == 0))[torch.maximum(out, want) > 1e-7].any())
    assert_close(out, want)
    return out


@pytest.mark.parametrize(
    *cases(vocab=[1, 2, 5, 33, 1001, 12_000, 24_000, 32000, 128256, 262144, 1_000_000], spread=[1.0, 6.0])
)
@pytest.mark.parametrize("chain", CHAINS, ids=chain_id)
def test_random_rows(case, chain):
    rows = 2 if case.vocab > 200_000 else 6
    check(source_of(chain, random_normal((rows, case.vocab), scale=case.spread, device="cuda")), chain)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chain", CHAINS, ids=chain_id)
def test_per_row_parameters(chain, dtype):
    filters = {
        "top_k": torch.tensor([1, 2, 50, 256, 257, 2048, 0, -3, 1 << 30, 5000], device="cuda"),
        "top_p": torch.tensor([0.9, 0.1, 0.999, 1.0, 0.0, -1.0, NAN, 2.0, 1e-6, 0.5], device="cuda"),
        "min_p": torch.linspace(-0.1, 1.2, 10, device="cuda"),
        "temperature": torch.linspace(0.2, 3.0, 10, device="cuda"),
    }
    for vocab in (257, 20_001):
        check(source_of(chain, random_normal((10, vocab), dtype, scale=3.0, device="cuda")), chain, filters)


@pytest.mark.parametrize("vocab", [37, 3000, 128256])
@pytest.mark.parametrize("chain", CHAINS, ids=chain_id)
def test_adversarial_rows(chain, vocab):
    torch.manual_seed(2)
    rows = [
        torch.zeros(vocab),
        torch.linspace(-8, 8, vocab),
        torch.randint(0, 3, (vocab,)).float(),
        torch.full((vocab,), -INF).index_fill(0, torch.tensor([vocab // 2]), 1.0),
        torch.where(torch.arange(vocab) < vocab // 3, -INF, torch.randn(vocab)),
        torch.where(torch.arange(vocab) == 5, NAN, torch.randn(vocab)),
        torch.where(torch.arange(vocab) == 5, INF, torch.randn(vocab)),
        torch.full((vocab,), -INF),
    ]
    source = source_of(chain, torch.stack(rows).cuda())
    if SOFTMAX not in chain:
        dyadic = torch.tensor([0.5, 0.25, 0.125, 0.125], device="cuda").repeat(1, vocab // 4 + 1)[:, :vocab]
        source = torch.cat([source, dyadic, torch.zeros_like(dyadic), torch.rand_like(dyadic) - 0.5])
    for filters in ({}, {"top_p": 0.75, "top_k": 3, "min_p": 0.5}, {"temperature": 0.0}, {"temperature": -1.0}):
        check(source, chain, filters)


@pytest.mark.parametrize(*cases(vocab=[33, 1001, 20_003], dtype=DTYPES))
def test_rows_anywhere_in_memory(case):
    for chain in (("top_p",), ("softmax", "top_p"), ("top_k",)):
        for source in (
            random_strided((5, case.vocab), case.dtype, padding=3, device="cuda"),
            random_strided((5, case.vocab), case.dtype, last_contiguous=False, device="cuda"),
        ):
            given = source if SOFTMAX in chain else source.abs()
            dtype = torch.float32 if SOFTMAX in chain else case.dtype
            storage = torch.full((5, case.vocab + 7), 7.0, dtype=dtype, device="cuda")
            check(given, chain, out=storage[:, 3 : 3 + case.vocab])
            assert bool((storage[:, :3] == 7).all())
            assert bool((storage[:, 3 + case.vocab :] == 7).all())
            check(given, chain, out=torch.empty(case.vocab, 5, dtype=dtype, device="cuda").t())


@pytest.mark.parametrize("parts", [1, 4, 8, 16])
def test_every_launch_shape(parts, monkeypatch):
    if parts > 1 and torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("clusters need compute capability 9")
    for vocab in (7, 5000, 40_003):
        tiles = math.ceil(vocab * 4 / 4096)
        for resident in (True, False):
            shape = RowShape(parts, resident, math.ceil(tiles / parts) * 4096 if resident else 0)
            monkeypatch.setattr(launcher, "row_shape", lambda *_, shape=shape: shape)
            for chain in CHAINS:
                check(source_of(chain, random_normal((3, vocab), scale=3.0, device="cuda")), chain)


@pytest.mark.parametrize("chain", CHAINS, ids=chain_id)
def test_in_place_and_the_same_bits_in_every_batch(chain):
    source = source_of(chain, random_normal((20, 30_000), device="cuda"))
    whole = check(source, chain)
    assert torch.equal(check(source[7:9], chain), whole[7:9])
    assert torch.equal(check(source, chain), whole)
    if SOFTMAX not in chain:
        changed = source.clone()
        given = {"top_k": 50, "top_p": 0.9, "min_p": 0.02}
        renorm("test", changed, chain, {step: given[step] for step in chain}, out=changed, backend="cuda")
        assert torch.equal(changed, whole)


@pytest.mark.parametrize(*cases(vocab=[1, 33, 1001, 128256, 1_000_000], dtype=DTYPES))
def test_top_k_mask(case):
    logits = random_normal((8, case.vocab), case.dtype, scale=3.0, device="cuda")
    logits[1] = 0.0
    logits[2, case.vocab // 2] = NAN
    logits[3] = -INF
    logits[4, 0] = INF
    for k in (1, 50, 3000, torch.tensor([1, 2, 3, 4, 0, -1, 1 << 30, 700], device="cuda")):
        masked = sampling.top_k_mask_logits(logits, k, backend="cuda")
        want = sampling.top_k_mask_logits(logits, k, backend="reference")
        assert torch.equal(masked.nan_to_num(nan=7.0), want.nan_to_num(nan=7.0))
    changed = logits.clone()
    sampling.top_k_mask_logits(changed, 5, out=changed, backend="cuda")
    assert torch.equal(changed[5:], sampling.top_k_mask_logits(logits, 5, backend="reference")[5:])


def test_auto_takes_the_kernels_and_waits_for_nothing():
    probs = torch.softmax(random_normal((4, 5000), device="cuda"), -1)
    sampling.top_p_renorm_probs(probs, 0.9)
    sampling.top_k_mask_logits(probs, 5)
    torch.cuda.set_sync_debug_mode("error")
    try:
        sampling.top_p_renorm_probs(probs, torch.full((4,), 0.9, device="cuda"))
        sampling.top_k_mask_logits(probs, 5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert RENORM.last.name == TOP_K_MASK.last.name == "cuda"
