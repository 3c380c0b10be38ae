"""Helpers that the tests of every family share: value comparison, case grids, awkward inputs, looks into
machine code.

Importing it does not import pytest, so benchmarks and downstream projects can use it too.
"""

from warploom.core.testing.compare import Tolerance, assert_close, relative_error, tolerance_of
from warploom.core.testing.grids import cases, grid, label
from warploom.core.testing.inputs import indptr_of, poison_like, ragged_lengths, random_normal, random_strided
from warploom.core.testing.machine import gpu_available, why_no_gpu
from warploom.core.testing.machine_code import Resources, disassemble, resources_of, why_no_disassembler
from warploom.core.testing.sanitizer import assert_sanitizer_is_silent

__all__ = [
    "Resources",
    "Tolerance",
    "assert_close",
    "assert_sanitizer_is_silent",
    "cases",
    "disassemble",
    "gpu_available",
    "grid",
    "indptr_of",
    "label",
    "poison_like",
    "ragged_lengths",
    "random_normal",
    "random_strided",
    "relative_error",
    "resources_of",
    "tolerance_of",
    "why_no_disassembler",
    "why_no_gpu",
]
