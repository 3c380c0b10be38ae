"""Launch of the products of `gemm_hopper.cuh`."""

from __future__ import annotations

import functools
from dataclasses import replace
from enum import IntEnum
from typing import NamedTuple

import torch

from warploom.core.calls import Kept
from warploom.core.descriptors import TensorMap, TensorView, tensor_map
from warploom.core.device import sm_count
from warploom.core.jit import KernelSpec, ParamStruct, cpp_type, i32, i64, ptr
from warploom.gemm.backends.hopper.tiles import SPAN_BYTES, GemmTiles, ProductShape, shares_column_scale
from warploom.gemm.scales import ceil_div

__all__ = ["ACTIVATIONS", "OPERAND_ORDER", "Activation", "Grouping", "KernelKind", "Operands", "PreparedProduct"]
__all__ += ["Scaling", "gemm_spec", "product_spec"]

_BIAS_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_MOST_MAPS = 4096  # of a product: weights of many layers, tokens in many places
_FEW_TOKENS = 64
_BAND_TOKENS = 2048  # whose tiles meet a tile of weights before the next does


class Grouping(IntEnum):
    """How many tokens each matrix of weights has: as many, by offsets in one list of tokens, or by counts."""

    UNIFORM = 0
    OFFSETS = 1
    COUNTS = 2


class Scaling(IntEnum):
    NONE = 0
    AT_END = 1
    OF_BLOCKS = 2


class Activation(IntEnum):
    NONE = 0
    RELU = 1
    GELU = 2
    SILU = 3


ACTIVATIONS = {"": Activation.NONE, "relu": Activation.RELU, "gelu": Activation.GELU, "silu": Activation.SILU}


class GemmParams(ParamStruct):
    cpp_name = "warploom::gemm::GemmParams"
    out: ptr
    token_scales: ptr
    weight_scales: ptr
    bias: ptr
    sizes: ptr
    weight_indices: ptr
    row_indices: ptr
    tokens: ptr
    out_group_stride: i64
    out_row_stride: i64
    token_scale_group_stride: i64
    weight_scale_group_stride: i64
    token_bytes: i64
    token_scale_row_stride: i32
    token_scale_k_stride: i32
    weight_scale_row_stride: i32
    weight_scale_k_stride: i32
    token_scale_rows: i32
    weight_scale_rows: i32
    scale_steps: i32
    rows: i32
    n: i32
    k_steps: i32
    groups: i32
    num_weights: i32
    weights_step: i32
    sizes_step: i32
    indices_step: i32
    row_indices_step: i32
    num_tokens: i32
    k_bytes: i32
    bias_type: i32
    band: i32
    weight_tile: i32
    stage_bytes: i32


# The tensors among a product's operands: two that TMA copies, then the pointers at the start of the parameters, where the last
# is the first once more.
OPERAND_ORDER = (
    "tokens",
    "weights",
    "out",
    "token_scales",
    "weight_scales",
    "bias",
    "sizes",
    "weight_indices",
    "row_indices",
)


class KernelKind(NamedTuple):
    """What a kernel is compiled for, besides its tiles."""

    dtype: torch.dtype
    out_dtype: torch.dtype
    grouping: Grouping = Grouping.UNIFORM
    scaling: Scaling = Scaling.NONE
    activation: Activation = Activation.NONE
    has_bias: bool = False
    weights_turned: bool = False
    shares_column_scale: bool = False
    gathers: bool = False


class Operands(NamedTuple):
    """Tensors of a product; all have a leading dimension of groups.

    Attributes
    ----------
    out, tokens : Tensor ``[batch, rows, n]`` and ``[batch, rows, k]``
        With offsets, a batch of one whose rows belong to groups.
    weights : Tensor ``[num_weights, n, k]``
    token_scales, weight_scales : Tensor ``[batch, row_blocks, k_blocks]`` and ``[num_weights, n_blocks, k_blocks]``
        One K block if they are factors of rows.
    granularity : tuple of int
        Tokens, rows of weights and columns that share a scale.
    sizes, weight_indices : Tensor ``[groups + 1]`` or ``[groups]``, and ``[groups]``
    row_indices : Tensor ``[rows]``
        Token of each row of the output, if they are not one after the other. With offsets only.
    """

    out: torch.Tensor
    tokens: torch.Tensor
    weights: torch.Tensor
    groups: int
    bias: torch.Tensor | None = None
    token_scales: torch.Tensor | None = None
    weight_scales: torch.Tensor | None = None
    granularity: tuple[int, int, int] = (1, 1, SPAN_BYTES)
    sizes: torch.Tensor | None = None
    weight_indices: torch.Tensor | None = None
    row_indices: torch.Tensor | None = None

    def addresses(self) -> tuple[int, ...]:
        """Where the tensors begin, in `OPERAND_ORDER`; 0 for None."""
        tensors = (getattr(self, name) for name in OPERAND_ORDER)
        return tuple(0 if tensor is None else tensor.data_ptr() for tensor in tensors)


@functools.lru_cache(4096)
def gemm_spec(tiles: GemmTiles, kind: KernelKind) -> KernelSpec:
    """The kernel for these tiles."""
    has_fp8 = torch.float8_e4m3fn in (kind.dtype, kind.out_dtype)
    return KernelSpec(
        family="gemm",
        header=f"warploom/gemm/gemm_hopper{'_fp8' if has_fp8 else ''}.cuh",
        kernel="warploom::gemm::gemm_kernel",
        config={
            "In": cpp_type(kind.dtype),
            "Out": cpp_type(kind.out_dtype),
            "kSwapped": tiles.swapped,
            "kWarpgroups": tiles.warpgroups,
            "kWaves": tiles.waves,
            "kColumns": tiles.columns,
            "kStages": tiles.stages,
            "kCluster": tiles.cluster,
            "kParts": tiles.parts,
            "kGroupingNumber": kind.grouping,
            "kScalingNumber": kind.scaling,
            "kActivationNumber": kind.activation,
            "kHasBias": kind.has_bias,
            "kWeightsTurned": kind.weights_turned,
            "kSharesColumnScale": kind.shares_column_scale,
            "kGathers": kind.gathers,
        },
        params=(GemmParams, *["warploom::TensorMap"] * 2),
        archs=("sm_90a",),
        expect_sass=(
            "QGMMA" if kind.dtype.itemsize == 1 else "HGMMA",
            "UTMALDG",
            *(("LDGSTS",) if kind.gathers else ()),
        ),
    )


def product_spec(tiles: GemmTiles, kind: KernelKind, shape: ProductShape) -> KernelSpec:
    """The kernel for a product, whose tiles decide how its scales come."""
    return gemm_spec(tiles.compiled, kind._replace(shares_column_scale=shares_column_scale(tiles, shape)))


class PreparedProduct:
    """A product whose operands lie as those of the first call do, wherever that is."""

    def __init__(self, tiles: GemmTiles, kind: KernelKind, shape: ProductShape, operands: Operands) -> None:
        device = operands.out.device
        self._tokens = TensorView.of(operands.tokens)
        self._token_box = (1, tiles.token_tile // tiles.cluster, shape.depth)
        self._weights = TensorView.of(operands.weights.mT if kind.weights_turned else operands.weights)
        self._weight_box = (1, shape.depth if kind.weights_turned else tiles.weights, shape.depth)
        # What a promotion fetches beside a span is the next's: early for few tokens, which wait for memory.
        self._weight_promotion = "128B" if tiles.token_tile <= _FEW_TOKENS else "256B"
        self._maps: Kept[tuple[int, int], tuple[TensorMap, TensorMap]] = Kept(_MOST_MAPS)
        self._launch = (
            product_spec(tiles, kind, shape)
            .load(device)
            .prepare(
                _blocks(tiles, kind, operands, sm_count(device)),
                tiles.threads,
                _params(tiles, operands),
                *self._maps_of(*operands.addresses()[:2]),
                smem=tiles.smem,
                cluster=tiles.blocks if tiles.blocks > 1 else None,
                pdl=True,
                pointers=len(OPERAND_ORDER) - 1,
            )
        )

    def run(self, tokens: int, weights: int, *pointers: int) -> None:
        """Launch on the current stream, with the addresses of the tensors of `OPERAND_ORDER`."""
        self._launch.launch(*pointers, tokens, more=self._maps_of(tokens, weights))

    def _maps_of(self, tokens: int, weights: int) -> tuple[TensorMap, TensorMap]:
        where = tokens, weights
        found = self._maps.get(where)
        if found is None:
            maps = (
                tensor_map(replace(self._tokens, pointer=tokens), self._token_box),
                tensor_map(replace(self._weights, pointer=weights), self._weight_box, l2=self._weight_promotion),
            )
            found = self._maps.keep(where, maps)
        return found


def _blocks(tiles: GemmTiles, kind: KernelKind, operands: Operands, sms: int) -> int:
    """One for each SM, or fewer if there is less to do, whatever sizes the groups have."""
    rows, n, groups = operands.out.shape[1], operands.weights.shape[1], operands.groups
    columns = ceil_div(n, tiles.weights * tiles.cluster)
    if kind.grouping == Grouping.OFFSETS:
        work = min(rows // tiles.token_tile + groups, rows) * columns
    else:
        work = groups * ceil_div(rows, tiles.token_tile) * columns
    return min(tiles.clusters(sms), work) * tiles.blocks


def _params(tiles: GemmTiles, operands: Operands) -> GemmParams:
    out, tokens, weights = operands.out, operands.tokens, operands.weights
    a_scales, b_scales, bias = operands.token_scales, operands.weight_scales, operands.bias
    a_strides = (0, 0, 0) if a_scales is None else a_scales.stride()
    b_strides = (0, 0, 0) if b_scales is None else b_scales.stride()
    token_rows, weight_rows, depth = operands.granularity
    sizes, indices, row_indices = operands.sizes, operands.weight_indices, operands.row_indices
    k_bytes = tokens.shape[2] * tokens.element_size()
    return GemmParams(
        out=out,
        token_scales=a_scales,
        weight_scales=b_scales,
        bias=bias,
        sizes=sizes,
        weight_indices=indices,
        row_indices=row_indices,
        tokens=tokens,
        out_group_stride=out.stride(0),
        out_row_stride=out.stride(1),
        token_scale_group_stride=a_strides[0],
        weight_scale_group_stride=b_strides[0],
        token_bytes=tokens.stride(1) * tokens.element_size(),
        token_scale_row_stride=a_strides[1],
        token_scale_k_stride=a_strides[2],
        weight_scale_row_stride=b_strides[1],
        weight_scale_k_stride=b_strides[2],
        token_scale_rows=token_rows,
        weight_scale_rows=weight_rows,
        scale_steps=depth // SPAN_BYTES,
        rows=out.shape[1],
        n=weights.shape[1],
        k_steps=ceil_div(k_bytes, SPAN_BYTES),
        groups=operands.groups,
        num_weights=weights.shape[0],
        weights_step=int(weights.shape[0] > 1 or operands.groups == 1),
        sizes_step=_words(sizes),
        indices_step=_words(indices),
        row_indices_step=_words(row_indices),
        num_tokens=tokens.shape[1],
        k_bytes=k_bytes,
        bias_type=0 if bias is None else _BIAS_TYPES[bias.dtype],
        band=max(1, _BAND_TOKENS // tiles.token_tile),
        weight_tile=tiles.weights,
        stage_bytes=tiles.stage_bytes if row_indices is None else tiles.weights * SPAN_BYTES,
    )


def _words(indices: torch.Tensor | None) -> int:
    """From one number to the next, in words of 32 bits; of 64 bits the kernel reads the low half."""
    return 1 if indices is None else indices.stride(0) * indices.element_size() // 4
