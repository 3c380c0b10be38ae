"""The device header's random numbers against the torch reference, on both devices."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from philox_kernel import PHILOX, PhiloxParams

from warploom.core.testing import assert_close
from warploom.sampling.backends.reference.philox import exponential, random_words, uniform
from warploom.sampling.randomness import RandomState

pytestmark = pytest.mark.gpu(min_arch=80)


@pytest.mark.parametrize("seed", [0, 12345, 2**63 + 17, 2**64 - 1])
@pytest.mark.parametrize("offset", [0, 1, 2**40 + 3])
def test_header_gives_the_words_of_the_reference(seed, offset):
    rows, blocks = 7, 250
    words = torch.empty(rows, blocks * 4, dtype=torch.int32, device="cuda")
    floats = torch.empty(2, rows, blocks * 4, device="cuda")
    params = PhiloxParams(words=words, uniform=floats[0], exponential=floats[1], seed=seed, offset=offset)
    PHILOX.load(words.device).launch(rows, blocks, params)
    signed = seed - 2**64 if seed >= 2**63 else seed
    for device in ("cuda", "cpu"):
        want = random_words(RandomState(None, signed, None, offset), rows, blocks * 4, torch.device(device))
        assert torch.equal(words.to(device).to(torch.int64) & 0xFFFFFFFF, want)
        assert torch.equal(floats[0].to(device), uniform(want))
        assert_close(floats[1], exponential(want), rtol=1e-6, atol=1e-6)
