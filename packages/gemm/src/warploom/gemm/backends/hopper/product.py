"""What all products of this folder share: what they take, and how they come to a launch."""

from __future__ import annotations

import torch

from warploom.core.backends import Support
from warploom.core.device import sm_count
from warploom.gemm.backends.hopper.gemm_kernel import (
    Activation,
    Grouping,
    KernelKind,
    Operands,
    Scaling,
    multiply,
)
from warploom.gemm.backends.hopper.tiles import SPAN_BYTES, GemmTiles, ProductShape, choose_tiles
from warploom.gemm.scales import ceil_div

__all__ = ["MOST_GROUPS", "product_support", "run_product"]

MOST_GROUPS = 1024  # whose tiles a block counts in shared memory
_IN = (torch.bfloat16, torch.float16, torch.float8_e4m3fn)
_OUT = (torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn)
_VECTOR_BYTES = 16
_MOST_STEPS = 2**31 - 1


def product_support(
    arch: int,
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype],
    shape: tuple[int, int, int, int],
) -> Support:
    """Conditions of every product: types of tokens, weights and outputs; groups, rows, n and k."""
    groups, rows, n, k = shape
    tokens, weights, out = dtypes
    tiles = groups * ceil_div(rows, 8) * ceil_div(n, 64)
    return Support.of(
        (arch == 90, f"its barriers and products are those of sm_90, not of sm_{arch}"),
        (tokens in _IN, f"multiplies bfloat16, float16 and float8_e4m3fn, not {tokens}"),
        (tokens == weights, f"multiplies operands of one type, not {tokens} by {weights}"),
        (out in _OUT, f"writes bfloat16, float16, float32 and float8_e4m3fn, not {out}"),
        (k >= 1, "needs at least one element to sum over"),
        (tiles <= _MOST_STEPS, f"counts at most {_MOST_STEPS} tiles, this may have {tiles}"),
    )


def run_product(
    operands: Operands,
    tokens: int,
    grouping: Grouping = Grouping.UNIFORM,
    scaling: Scaling = Scaling.NONE,
    activation: Activation = Activation.NONE,
    tiles: GemmTiles | None = None,
) -> None:
    """Choose tiles, bring operands into a form that TMA takes, and launch.

    Parameters
    ----------
    tokens : int
        About how many tokens a group has.
    tiles : GemmTiles, optional
        Instead of those that would be chosen.
    """
    if operands.out.numel() == 0:
        return
    weights, turned = _weights(operands.weights)
    out, target = operands.out, _target(operands.out)
    operands = operands._replace(out=target, tokens=_k_major(operands.tokens), weights=weights)
    shape = product_shape(operands, tokens, scaling, turned)
    tiles = tiles or choose_tiles(shape, sm_count(target.device))
    kind = KernelKind(weights.dtype, target.dtype, grouping, scaling, activation, weights_turned=turned)
    multiply(tiles, kind, shape, operands)
    if target is not out:
        out.copy_(target)


def product_shape(operands: Operands, tokens: int, scaling: Scaling, turned: bool) -> ProductShape:
    _, n, k = operands.weights.shape
    has_blocks = scaling == Scaling.OF_BLOCKS
    return ProductShape(
        groups=operands.groups,
        tokens=tokens,
        n=n,
        k=k,
        itemsize=operands.weights.element_size(),
        has_blocks=has_blocks,
        shares_scales=has_blocks and operands.granularity[1] % SPAN_BYTES == 0,
        weights_turned=turned,
    )


def _is_tma_ready(x: torch.Tensor) -> bool:
    """Dense in the last dimension; others at multiples of 16 bytes from each other."""
    if (x.stride(2) != 1 and x.shape[2] > 1) or x.data_ptr() % _VECTOR_BYTES:
        return False
    size = x.element_size()
    return all(x.shape[i] == 1 or (x.stride(i) > 0 and x.stride(i) * size % _VECTOR_BYTES == 0) for i in range(2))


def _k_major(x: torch.Tensor) -> torch.Tensor:
    """``[batch, rows, k]`` as TMA takes it, or a copy with its rows padded."""
    if _is_tma_ready(x):
        return x
    multiple = _VECTOR_BYTES // x.element_size()
    padded = x.new_empty((*x.shape[:2], ceil_div(x.shape[2], multiple) * multiple))
    view = padded[:, :, : x.shape[2]]
    view.copy_(x)
    return view


def _weights(weights: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """``[num, n, k]`` and whether n is the dense dimension; one matrix if all are the same memory."""
    if weights.stride(0) == 0:
        weights = weights[:1]
    if not _is_tma_ready(weights) and weights.element_size() == 2 and _is_tma_ready(weights.mT):
        return weights, True
    return _k_major(weights), False


def _target(out: torch.Tensor) -> torch.Tensor:
    """The output itself, or memory whose rows the kernel can write as vectors."""
    size = out.element_size()
    if size != 2:
        return out
    strides = (out.stride(i) * size % _VECTOR_BYTES == 0 or out.shape[i] == 1 for i in range(2))
    if out.shape[2] % 8 == 0 and out.data_ptr() % _VECTOR_BYTES == 0 and all(strides):
        return out
    columns = ceil_div(out.shape[2], 8) * 8
    return out.new_empty((*out.shape[:2], columns))[:, :, : out.shape[2]]
