"""The error that approximate keys of a race are allowed, against the one that they have."""

import pytest
import torch
from kernel_specs import spec_of

from warploom.core.jit import ParamStruct, ptr

pytestmark = pytest.mark.gpu(min_arch=80)


class RaceErrorParams(ParamStruct):
    cpp_name = "warploom::test::RaceErrorParams"
    worst: ptr
    bound: ptr


RACE_ERROR = spec_of("race_kernel.cuh", "race_error_kernel", RaceErrorParams)


def test_every_random_word_is_within_the_error_of_a_key():
    """Keys of two quads may err in opposite directions, and weights by another 1e-5 each."""
    worst = torch.zeros(1, dtype=torch.float64, device="cuda")
    bound = torch.zeros(1, device="cuda")
    RACE_ERROR.load(worst.device).launch(132 * 8, 256, RaceErrorParams(worst=worst, bound=bound))
    assert worst.item() > 2e-5  # the approximation, not the exact function
    assert 2 * (worst.item() + 1e-5) < bound.item()
