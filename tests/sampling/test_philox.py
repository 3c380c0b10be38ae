"""The random numbers: known answers, the stated mapping, the stated transformations."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from philox_kernel import PHILOX

from warploom.core.jit import compile_spec
from warploom.sampling.backends.reference.philox import exponential, philox4x32, random_words, uniform
from warploom.sampling.randomness import RandomState

# From the known-answer file of Random123, philox 4x32 with 10 rounds: counter, key, result.
KNOWN = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


def python_philox(counter, key):
    """Ten rounds in Python's integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(counter, key, words):
    tensors = [torch.tensor(value, dtype=torch.int64) for value in counter + key]
    assert [int(word) for word in philox4x32(tuple(tensors[:4]), tuple(tensors[4:]))] == words
    assert python_philox(counter, key) == words


@pytest.mark.parametrize("seed", [0, 7, -1, 2**62 + 12345])
@pytest.mark.parametrize("offset", [0, 3, 2**40 + 1, -2])
def test_words_follow_the_stated_counter(seed, offset):
    words = random_words(RandomState(None, seed, None, offset), 3, 10, torch.device("cpu"), first_draw=8)
    seed, offset = seed % 2**64, offset % 2**64
    for row in range(3):
        for draw in range(10):
            index = draw + 8
            counter = [index // 4, row, offset % 2**32, offset >> 32]
            assert int(words[row, draw]) == python_philox(counter, [seed % 2**32, seed >> 32])[index % 4]


def test_rows_with_their_own_seeds_share_a_counter():
    seeds = torch.tensor([5, 5, 9])
    words = random_words(RandomState(seeds, 0, None, 0), 3, 8, torch.device("cpu"))
    alone = random_words(RandomState(None, 5, None, 0), 1, 8, torch.device("cpu"))
    assert torch.equal(words[0], words[1])
    assert torch.equal(words[0], alone[0])
    assert not torch.equal(words[0], words[2])


def test_transformations():
    words = torch.tensor([0, 255, 256, 2**32 - 1])
    assert uniform(words).tolist() == [0.0, 0.0, 2.0**-24, 1 - 2.0**-24]
    expected = -np.log1p(-(words.numpy() + 0.5) / 2.0**32)
    np.testing.assert_allclose(exponential(words).numpy(), expected, rtol=1e-15)
    assert exponential(words)[0] == pytest.approx(2.0**-33)  # small values keep their resolution


def test_numbers_look_random():
    words = random_words(RandomState(None, 1, None, 0), 100, 1000, torch.device("cpu"))
    u = uniform(words).double()
    assert abs(float(u.mean()) - 0.5) < 5 * (1 / 12 / u.numel()) ** 0.5
    assert abs(float(exponential(words).mean()) - 1) < 5 / u.numel() ** 0.5
    assert words.unique().numel() > 0.9999 * words.numel()


@pytest.mark.parametrize("arch", PHILOX.archs)
def test_device_header_compiles(arch):
    assert compile_spec(PHILOX, arch).entry.cubin
