"""The kernel instances that are built ahead of time and compiled in the test suite."""

from __future__ import annotations

import torch

from warploom.gemm.backends.cuda.quantize import amax_spec, cast_spec, groups_spec, tiles_spec
from warploom.gemm.backends.cuda.quantize_fused import rmsnorm_spec, silu_spec

__all__ = ["SHIPPED"]

_E4M3, _E5M2 = torch.float8_e4m3fn, torch.float8_e5m2

SHIPPED = [
    groups_spec(torch.bfloat16, _E4M3, 128),
    groups_spec(torch.bfloat16, _E4M3, 64),
    groups_spec(torch.bfloat16, _E4M3, 32),
    groups_spec(torch.bfloat16, _E5M2, 128),
    groups_spec(torch.float16, _E4M3, 128),
    groups_spec(torch.float32, _E4M3, 128),
    tiles_spec(torch.bfloat16, _E4M3),
    tiles_spec(torch.float16, _E4M3),
    tiles_spec(torch.float32, _E4M3),
    amax_spec(torch.bfloat16),
    amax_spec(torch.float16),
    cast_spec(torch.bfloat16, _E4M3),
    cast_spec(torch.float16, _E4M3),
    silu_spec(torch.bfloat16, _E4M3, 128),
    silu_spec(torch.bfloat16, _E4M3, None),
    silu_spec(torch.bfloat16, _E4M3, 128, masked=True),
    silu_spec(torch.float16, _E4M3, 128),
    silu_spec(torch.float32, _E4M3, 128),
    rmsnorm_spec(torch.bfloat16, _E4M3, 128, residual=False),
    rmsnorm_spec(torch.bfloat16, _E4M3, 128, residual=True),
    rmsnorm_spec(torch.bfloat16, _E4M3, -1, residual=True),
    rmsnorm_spec(torch.bfloat16, _E4M3, None, residual=True),
    rmsnorm_spec(torch.float16, _E4M3, 128, residual=True),
    rmsnorm_spec(torch.float32, _E4M3, 128, residual=True),
]
