"""What all products of this folder share: what they take, and how they come to a launch."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch

from warploom.core.backends import Backend, Support
from warploom.core.device import sm_count
from warploom.gemm.backends.hopper.gemm_kernel import (
    Activation,
    Grouping,
    KernelKind,
    Operands,
    PreparedProduct,
    Scaling,
)
from warploom.gemm.backends.hopper.tile_choice import choose_tiles, describe_choice
from warploom.gemm.backends.hopper.tiles import BLOCK_ROWS, H200_SMS, GemmTiles, ProductShape
from warploom.gemm.scales import ceil_div

__all__ = ["MOST_GROUPS", "HopperProduct", "product_shape", "product_support", "run_product", "shares_scales"]

MOST_GROUPS = 1024  # whose tiles a block counts in shared memory
_IN = (torch.bfloat16, torch.float16, torch.float8_e4m3fn)
_OUT = (torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn)
_VECTOR_BYTES = 16
_MOST_PRODUCTS = 8192  # whose launches are kept
_MOST_STEPS = 2**31 - 1


class HopperProduct(Backend):
    """What the backends of this folder have in common."""

    name = "hopper"
    needs_gpu = True
    min_arch = 90

    @abstractmethod
    def shape_of(self, problem: Any) -> ProductShape:
        """What tiles are chosen by, with weights stored ``[n, k]``."""

    def details(self, problem: Any) -> str:
        return describe_choice(self.shape_of(problem), H200_SMS)


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
    *,
    is_ready: bool = False,
) -> None:
    """Launch a product, after bringing operands into a form that TMA takes where they are not.

    Parameters
    ----------
    tokens : int
        About how many tokens a group has.
    tiles : GemmTiles, optional
        Instead of those that would be chosen.
    is_ready : bool
        Operands come from `_ready`: rows of the output may be written beyond their end.
    """
    if operands.out.numel() == 0:
        return
    key = (_layout_of(operands), tokens, grouping, scaling, activation, tiles, is_ready)
    product = _products.get(key)
    if product is None:
        if len(_products) >= _MOST_PRODUCTS:
            _products.clear()
        is_ready = is_ready or all(one is other for one, other in zip(_ready(operands), operands, strict=True))
        product = _prepare(operands, tokens, grouping, scaling, activation, tiles) if is_ready else _NEEDS_COPIES
        _products[key] = product
    if isinstance(product, PreparedProduct):
        product.run(operands)
        return
    ready = _ready(operands)
    run_product(ready, tokens, grouping, scaling, activation, tiles, is_ready=True)
    if ready.out is not operands.out:
        operands.out.copy_(ready.out)


_products: dict[Any, PreparedProduct | str] = {}
_NEEDS_COPIES = "operands are copied first"


def _layout_of(operands: Operands) -> tuple[Any, ...]:
    """All of the operands but where they begin, and whether that is aligned."""
    return tuple(
        (value.shape, value.stride(), value.dtype, value.data_ptr() % _VECTOR_BYTES, value.device.index)
        if isinstance(value, torch.Tensor)
        else value
        for value in operands
    )


def _prepare(
    operands: Operands,
    tokens: int,
    grouping: Grouping,
    scaling: Scaling,
    activation: Activation,
    tiles: GemmTiles | None,
) -> PreparedProduct:
    turned = not _is_tma_ready(operands.weights)
    shape = product_shape(operands, tokens, scaling, turned)
    tiles = tiles or choose_tiles(shape, sm_count(operands.out.device))
    kind = KernelKind(operands.weights.dtype, operands.out.dtype, grouping, scaling, activation, weights_turned=turned)
    return PreparedProduct(tiles, kind, shape, operands)


def _ready(operands: Operands) -> Operands:
    """The same operands, or copies where TMA and vector stores need other strides."""
    weights = operands.weights
    if weights.stride(0) == 0 and weights.shape[0] > 1:
        weights = weights[:1]  # one matrix for all
    is_turned = weights.element_size() == 2 and _is_tma_ready(weights.mT)
    if not is_turned:
        weights = _k_major(weights)
    return operands._replace(out=_target(operands.out), tokens=_k_major(operands.tokens), weights=weights)


def shares_scales(granularity: tuple[int, int, int]) -> bool:
    """Whether all rows of a block of weights have one scale."""
    return granularity[1] % BLOCK_ROWS == 0


def product_shape(operands: Operands, tokens: int, scaling: Scaling, turned: bool) -> ProductShape:
    """What tiles are chosen by."""
    _, n, k = operands.weights.shape
    has_blocks = scaling == Scaling.OF_BLOCKS
    return ProductShape(
        groups=operands.groups,
        tokens=tokens,
        n=n,
        k=k,
        itemsize=operands.weights.element_size(),
        has_blocks=has_blocks,
        shares_scales=has_blocks and shares_scales(operands.granularity),
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
