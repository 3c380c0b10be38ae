"""compute-sanitizer finds no bad access and no race in shared memory in the attention kernels."""

from pathlib import Path

import pytest

from warploom.core.testing import assert_sanitizer_is_silent

pytestmark = pytest.mark.gpu(arch=90)

STEPS = Path(__file__).parents[1] / "small_steps.py"


@pytest.mark.parametrize(
    ("tool", "steps"),
    [
        ("memcheck", "cuda"),
        ("racecheck", "cuda"),
        ("memcheck", "hopper"),
        ("racecheck", "hopper, whole tiles"),
        ("memcheck", "hopper_decode"),
        ("racecheck", "hopper_decode, whole tiles"),
    ],
)
def test_sanitizer_has_nothing_to_say(tool, steps):
    assert_sanitizer_is_silent(tool, "attention_", STEPS, steps)
