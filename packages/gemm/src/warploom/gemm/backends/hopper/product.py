"""What all products of this folder share: what they take, and how they come to a launch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from operator import itemgetter
from typing import Any, ClassVar, NamedTuple

import torch

from warploom.core.backends import Backend, Support
from warploom.core.device import sm_count
from warploom.gemm.backends.hopper.gemm_kernel import (
    OPERAND_ORDER,
    Activation,
    Grouping,
    KernelKind,
    Operands,
    PreparedProduct,
    Scaling,
)
from warploom.gemm.backends.hopper.tile_choice import choose_tiles, describe_choice
from warploom.gemm.backends.hopper.tiles import BLOCK_ROWS, H200_SMS, GemmTiles, ProductShape
from warploom.gemm.formats import Output
from warploom.gemm.scales import ceil_div

__all__ = ["MOST_GROUPS", "HopperProduct", "HopperRowsProduct", "Product", "prepare_product", "product_shape"]
__all__ += ["product_support", "shares_scales"]

MOST_GROUPS = 1024  # whose tiles a block counts in shared memory
_IN = (torch.bfloat16, torch.float16, torch.float8_e4m3fn)
_OUT = (torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn)
_VECTOR_BYTES = 16
_MOST_STEPS = 2**31 - 1


class Product(NamedTuple):
    """A product as the kernel computes it.

    Attributes
    ----------
    tokens : int
        About how many a group has.
    """

    operands: Operands
    tokens: int
    grouping: Grouping = Grouping.UNIFORM
    scaling: Scaling = Scaling.NONE
    activation: Activation = Activation.NONE


class HopperProduct(Backend):
    """What the backends of this folder have in common.

    Attributes
    ----------
    takes : tuple of str
        The operand that each tensor after the problem in `run` is, or a view of it.
    """

    name = "hopper"
    needs_gpu = True
    min_arch = 90
    takes: ClassVar[tuple[str, ...]]

    @abstractmethod
    def shape_of(self, problem: Any) -> ProductShape:
        """What tiles are chosen by, with weights stored ``[n, k]``."""

    @abstractmethod
    def product(self, problem: Any, *tensors: Any) -> Product:
        """The product of these tensors."""

    def details(self, problem: Any) -> str:
        return describe_choice(self.shape_of(problem), H200_SMS)

    def bind(self, problem: Any, *tensors: torch.Tensor | None) -> Callable[..., Any]:
        product = self.product(problem, *tensors)
        if product.operands.out.numel() == 0:
            return _nothing
        ready, prepared = prepare_product(product)
        operand_of = itemgetter(*(self.takes.index(name) if name in self.takes else -1 for name in OPERAND_ORDER))

        def addresses(tensors: tuple[torch.Tensor | None, ...]) -> tuple[int, ...]:
            # The 0 at the end stands for operands that are none of the tensors.
            return operand_of((*(0 if tensor is None else tensor.data_ptr() for tensor in tensors), 0))

        def launch(*tensors: torch.Tensor | None) -> None:
            prepared.run(*addresses(tensors))

        def copy_and_launch(*tensors: torch.Tensor | None) -> None:
            operands = self.product(problem, *tensors).operands
            ready = _ready(operands)
            prepared.run(*ready.addresses())
            if ready.out is not operands.out:
                operands.out.copy_(ready.out)

        return launch if ready.addresses() == addresses(tensors) else copy_and_launch

    def run(self, problem: Any, *tensors: Any) -> Any:
        return self.bind(problem, *tensors)(*tensors)


class HopperRowsProduct(HopperProduct):
    """Products that write a row for each token, into a new tensor unless the caller has one."""

    def bind(self, problem: Any, *tensors: torch.Tensor | None) -> Callable[..., torch.Tensor]:
        output = Output((problem.rows, self.shape_of(problem).n), problem.out_dtype)

        def with_output(out: Any, tokens: Any, *others: Any) -> tuple[Any, ...]:
            return output.tensor(out, like=tokens), tokens, *others

        launch = super().bind(problem, *with_output(*tensors))

        def run(*tensors: Any) -> torch.Tensor:
            out, *others = with_output(*tensors)
            launch(out, *others)
            return out

        return run


def _nothing(*tensors: torch.Tensor | None) -> None:
    """The launch of a product without elements."""


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


def prepare_product(product: Product, tiles: GemmTiles | None = None) -> tuple[Operands, PreparedProduct]:
    """A launch, and the operands that it takes: copies of those whose strides neither TMA nor vector stores take.

    Parameters
    ----------
    tiles : GemmTiles, optional
        Instead of those that would be chosen.
    """
    ready = _ready(product.operands)
    turned = not _is_tma_ready(ready.weights)
    shape = product_shape(ready, product.tokens, product.scaling, turned)
    kind = KernelKind(
        ready.weights.dtype,
        ready.out.dtype,
        product.grouping,
        product.scaling,
        product.activation,
        has_bias=ready.bias is not None,
        weights_turned=turned,
        gathers=ready.row_indices is not None,
    )
    return ready, PreparedProduct(tiles or choose_tiles(shape, sm_count(ready.out.device)), kind, shape, ready)


def _ready(operands: Operands) -> Operands:
    """The same operands, or copies where TMA and vector stores need other strides."""
    weights = operands.weights
    if weights.stride(0) == 0 and weights.shape[0] > 1:
        weights = weights[:1]  # one matrix for all
    is_turned = weights.element_size() == 2 and _is_tma_ready(weights.mT)
    if not is_turned:
        weights = _k_major(weights)
    bias = operands.bias if operands.bias is None else operands.bias.contiguous()
    return operands._replace(out=_target(operands.out), tokens=_k_major(operands.tokens), weights=weights, bias=bias)


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
        gathers=operands.row_indices is not None,
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
    return _padded(x).copy_(x)


def _target(out: torch.Tensor) -> torch.Tensor:
    """The output itself, or memory whose rows the kernel can write as vectors."""
    size = out.element_size()
    if size != 2:
        return out
    strides = (out.stride(i) * size % _VECTOR_BYTES == 0 or out.shape[i] == 1 for i in range(2))
    if out.shape[2] % 8 == 0 and out.data_ptr() % _VECTOR_BYTES == 0 and all(strides):
        return out
    return _padded(out)


def _padded(x: torch.Tensor) -> torch.Tensor:
    """Memory for as many elements, in rows that begin at multiples of 16 bytes."""
    multiple = _VECTOR_BYTES // x.element_size()
    columns = ceil_div(x.shape[2], multiple) * multiple
    return x.new_empty((*x.shape[:2], columns))[:, :, : x.shape[2]]
