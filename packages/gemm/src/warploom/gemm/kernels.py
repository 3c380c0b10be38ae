"""The kernel instances that are built ahead of time and compiled in the test suite."""

from __future__ import annotations

import torch

from warploom.core.jit import KernelSpec
from warploom.gemm.backends.cuda.quantize import amax_spec, cast_spec, groups_spec, tiles_spec
from warploom.gemm.backends.cuda.quantize_fused import rmsnorm_spec, silu_spec
from warploom.gemm.backends.hopper.gemm_kernel import Grouping, KernelKind, Scaling, product_spec
from warploom.gemm.backends.hopper.tile_choice import choose_tiles
from warploom.gemm.backends.hopper.tiles import H200_SMS, ProductShape

__all__ = ["SHIPPED"]

_E4M3, _E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
_BF16 = torch.bfloat16


def _product(
    tokens: int,
    n: int,
    k: int,
    dtype: torch.dtype = _BF16,
    scaling: Scaling = Scaling.NONE,
    grouping: Grouping = Grouping.UNIFORM,
    groups: int = 1,
    weights_turned: bool = False,
    has_bias: bool = False,
    gathers: bool = False,
) -> KernelSpec:
    """The kernel that an H200 takes for such a product."""
    has_blocks = scaling == Scaling.OF_BLOCKS
    shape = ProductShape(groups, tokens, n, k, dtype.itemsize, has_blocks, has_blocks, weights_turned, gathers)
    kind = KernelKind(
        dtype, _BF16, grouping, scaling, has_bias=has_bias, weights_turned=weights_turned, gathers=gathers
    )
    return product_spec(choose_tiles(shape, H200_SMS), kind, shape)


_BLOCKS, _ROWS = Scaling.OF_BLOCKS, Scaling.AT_END
_OFFSETS, _COUNTS = Grouping.OFFSETS, Grouping.COUNTS
_PRODUCTS = [
    _product(4096, 8192, 8192),
    _product(4096, 8192, 8192, has_bias=True),
    _product(4096, 8192, 8192, weights_turned=True),
    _product(16, 28672, 4096),
    _product(64, 8192, 8192),
    _product(4096, 8192, 8192, torch.float16),
    _product(16, 28672, 4096, _E4M3, _ROWS),
    _product(4096, 8192, 8192, _E4M3, _ROWS),
    _product(1, 28672, 4096, _E4M3, _BLOCKS),
    _product(16, 28672, 4096, _E4M3, _BLOCKS),
    _product(64, 4096, 7168, _E4M3, _BLOCKS),
    _product(128, 7168, 16384, _E4M3, _BLOCKS),
    _product(4096, 4096, 7168, _E4M3, _BLOCKS),
    _product(16, 4096, 7168, grouping=_OFFSETS, groups=256),
    _product(256, 4096, 7168, grouping=_OFFSETS, groups=64),
    _product(256, 4096, 7168, _E4M3, _BLOCKS, _OFFSETS, groups=64),
    _product(16, 4096, 7168, _E4M3, _BLOCKS, _COUNTS, groups=256),
    _product(256, 4096, 7168, grouping=_OFFSETS, groups=64, gathers=True),
    _product(16, 4096, 7168, _E4M3, _BLOCKS, _OFFSETS, groups=256, gathers=True),
    _product(512, 4096, 7168, _E4M3, _BLOCKS, _OFFSETS, groups=8, gathers=True),
    _product(4, 64, 4096, grouping=_OFFSETS, groups=64),
    _product(4, 4096, 64, grouping=_OFFSETS, groups=64),
    _product(4, 4096, 64, grouping=_OFFSETS, groups=64, weights_turned=True),
]

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
    *_PRODUCTS,
]
