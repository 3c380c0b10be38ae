"""compute-sanitizer finds no bad access and no race in shared memory in the kernel of products."""

from pathlib import Path

import pytest

from warploom.core.testing import assert_sanitizer_is_silent

pytestmark = pytest.mark.gpu(arch=90)

PRODUCTS = Path(__file__).parents[1] / "small_products.py"


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_sanitizer_has_nothing_to_say(tool):
    assert_sanitizer_is_silent(tool, "gemm_kernel", PRODUCTS)
