"""Seeds, offsets and generators."""

import pytest
import torch

from warploom.core.errors import ArgumentError
from warploom.core.testing import random_normal
from warploom.sampling import chain_speculative_sampling, sampling_from_logits

LOGITS = random_normal((64, 200))


def draw(**options):
    return sampling_from_logits(LOGITS, **options)


def test_same_seed_same_tokens_and_other_seed_others():
    assert torch.equal(draw(seed=1), draw(seed=1))
    assert not torch.equal(draw(seed=1), draw(seed=2))
    assert not torch.equal(draw(seed=1), draw(seed=1, offset=1))
    assert torch.equal(draw(seed=1), draw(seed=1, offset=0))


def test_seeds_and_offsets_are_64_bits_in_every_form():
    assert torch.equal(draw(seed=2**64 - 1), draw(seed=-1))
    for value in (-1, 2**40 + 3):
        tensor = torch.tensor([value])
        assert torch.equal(draw(seed=value), draw(seed=tensor))
        assert torch.equal(draw(seed=value), draw(seed=tensor[0]))
        assert torch.equal(draw(seed=value), draw(seed=tensor.numpy()))
        assert torch.equal(draw(seed=1, offset=value), draw(seed=1, offset=tensor))
        assert torch.equal(draw(seed=1, offset=value), draw(seed=1, offset=torch.full((64,), value)))
    assert not torch.equal(draw(seed=2**32), draw(seed=0))
    assert not torch.equal(draw(seed=0, offset=2**32), draw(seed=0))


@pytest.mark.parametrize("shape", [(), (1,), (64,)])
def test_offset_tensors_advance_in_place(shape):
    offset = torch.full(shape, 5)
    first, second = draw(seed=1, offset=offset), draw(seed=1, offset=offset)
    assert bool((offset == 7).all())
    assert torch.equal(first, draw(seed=1, offset=5))
    assert torch.equal(second, draw(seed=1, offset=6))


def test_generators():
    seeded = [draw(generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*seeded)
    generator = torch.Generator().manual_seed(3)
    first, second = draw(generator=generator), draw(generator=generator)
    assert torch.equal(first, seeded[0])
    assert not torch.equal(first, second)  # a draw moves the generator on


def test_default_generator():
    torch.manual_seed(9)
    first, second = draw(), draw()
    torch.manual_seed(9)
    assert torch.equal(draw(), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1.5}, "`seed` must be an integer"),
        ({"seed": 2**64}, "64 bits"),
        ({"offset": -(2**63) - 1}, "64 bits"),
        ({"seed": torch.zeros(64)}, "int64"),
        ({"seed": torch.zeros(64, dtype=torch.int32)}, "int64"),
        ({"seed": torch.zeros(3, dtype=torch.int64)}, r"\[64\]"),
        ({"offset": torch.zeros(1, 64, dtype=torch.int64)}, "`offset`"),
        ({"seed": 1, "generator": torch.Generator()}, "exclude each other"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ArgumentError, match=message):
        draw(**options)
    probs = torch.full((64, 2, 4), 0.25)
    with pytest.raises(ArgumentError, match=message):
        chain_speculative_sampling(probs[:, :1], torch.zeros(64, 1, dtype=torch.int32), probs, **options)
