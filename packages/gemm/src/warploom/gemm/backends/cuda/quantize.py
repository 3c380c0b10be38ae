"""Launch of the fp8 quantisers of ``quantize.cuh``."""

from __future__ import annotations

import functools

import torch

from warploom.core.backends import Backend, Support
from warploom.core.device import sm_count
from warploom.core.jit import KernelSpec, ParamStruct, cpp_type, f32, i32, i64, ptr, u32
from warploom.gemm.problems.quantize import QuantizeBlocksProblem, QuantizeTensorProblem
from warploom.gemm.scales import ceil_div

__all__ = [
    "GROUP_SIZES",
    "LANE_ELEMENTS",
    "MAX_GRID_Y",
    "VECTOR_BYTES",
    "CudaQuantizeBlocks",
    "CudaQuantizeTensor",
    "amax_spec",
    "cast_spec",
    "groups_spec",
    "tiles_spec",
]

_HEADER = "warploom/gemm/quantize.cuh"
VECTOR_BYTES = 16
_THREADS = 256
LANE_ELEMENTS = 16  # of a token group, in the lane of a warp
GROUP_SIZES = (16, 32, 64, 128, 256, 512)  # powers of two whose lanes fit a warp
_TILE = (128, 128)
_WAVES = 4  # thread blocks of the whole-tensor kernels for each SM: 1024 threads with four vectors in flight
MAX_GRID_Y = 65535
_MAX_UINT32 = 2**32 - 1


class QuantizeParams(ParamStruct):
    cpp_name = "warploom::gemm::QuantizeParams"
    x: ptr
    q: ptr
    scale: ptr
    x_batch_stride: i64
    x_row_stride: i64
    scale_batch_stride: i64
    scale_row_stride: i64
    scale_column_stride: i64
    rows: u32
    columns: u32
    column_blocks: u32
    eps: f32
    power_of_two: i32


class QuantizeTensorParams(ParamStruct):
    cpp_name = "warploom::gemm::QuantizeTensorParams"
    x: ptr
    q: ptr
    scale: ptr
    amax_bits: ptr
    vectors: i64
    eps: f32


def _spec(
    kernel: str, params: type[ParamStruct], types: dict[str, torch.dtype], load: str = "LDG.E.EF.128", **values: int
) -> KernelSpec:
    return KernelSpec(
        family="gemm",
        header=_HEADER,
        kernel=f"warploom::gemm::{kernel}",
        config={**{name: cpp_type(dtype) for name, dtype in types.items()}, **values},
        params=(params,),
        expect_sass=(load,),
    )


def _rows_in_flight(dtype: torch.dtype) -> int:
    """Rows of a thread: 64 bytes of loads in flight, which at six blocks of 40 registers to an SM is 96 KB."""
    return 4 // dtype.itemsize


@functools.cache
def groups_spec(dtype: torch.dtype, out_dtype: torch.dtype, group_size: int) -> KernelSpec:
    """Groups of `group_size` columns of a row."""
    types, rows = {"In": dtype, "Out": out_dtype}, _rows_in_flight(dtype)
    return _spec("quantize_groups_kernel", QuantizeParams, types, kGroup=group_size, kRows=rows, kThreads=_THREADS)


def _tile_threads(dtype: torch.dtype) -> int:
    """Eight vectors of the tile in each thread, whatever their type."""
    return _TILE[0] * _TILE[1] * dtype.itemsize // (8 * VECTOR_BYTES)


@functools.cache
def tiles_spec(dtype: torch.dtype, out_dtype: torch.dtype) -> KernelSpec:
    """Tiles of 128 x 128."""
    types = {"In": dtype, "Out": out_dtype}
    return _spec("quantize_tiles_kernel", QuantizeParams, types, kThreads=_tile_threads(dtype))


@functools.cache
def amax_spec(dtype: torch.dtype) -> KernelSpec:
    """Largest magnitude of a tensor, which stays in the caches for the pass that casts it."""
    return _spec("tensor_amax_kernel", QuantizeTensorParams, {"In": dtype}, "LDG.E.128", kThreads=_THREADS)


@functools.cache
def cast_spec(dtype: torch.dtype, out_dtype: torch.dtype) -> KernelSpec:
    """A tensor with one scale."""
    types = {"In": dtype, "Out": out_dtype}
    return _spec("quantize_tensor_kernel", QuantizeTensorParams, types, kThreads=_THREADS)


def _params(
    problem: QuantizeBlocksProblem, q: torch.Tensor, scale: torch.Tensor, x: torch.Tensor, eps: float
) -> QuantizeParams:
    return QuantizeParams(
        x=x,
        q=q,
        scale=scale,
        x_batch_stride=x.stride(0),
        x_row_stride=x.stride(1),
        scale_batch_stride=scale.stride(0),
        scale_row_stride=scale.stride(1),
        scale_column_stride=scale.stride(2),
        rows=problem.rows,
        columns=problem.columns,
        column_blocks=scale.shape[2],
        eps=eps,
        power_of_two=problem.power_of_two,
    )


class CudaQuantizeBlocks(Backend):
    """Token groups and 128x128 tiles, each read once and written once."""

    name = "cuda"
    needs_gpu = True
    min_arch = 80

    def supports(self, problem: QuantizeBlocksProblem) -> Support:
        rows, columns = problem.block
        width = VECTOR_BYTES // problem.dtype.itemsize
        groups = problem.rows * ceil_div(max(problem.columns, 1), columns)
        return Support.of(
            (
                problem.block == _TILE or (rows == 1 and columns in GROUP_SIZES),
                f"has groups of {', '.join(map(str, GROUP_SIZES))} and blocks of 128x128, not {rows}x{columns}",
            ),
            (
                problem.columns % width == 0,
                f"needs columns a multiple of {width} for {problem.dtype}, got {problem.columns}",
            ),
            (problem.aligned, "needs contiguous columns and 16-byte aligned rows"),
            (problem.batch <= MAX_GRID_Y, f"takes at most {MAX_GRID_Y} batches, got {problem.batch}"),
            (groups <= _MAX_UINT32 // 2, f"takes at most {_MAX_UINT32 // 2} groups in a batch, got {groups}"),
        )

    def run(
        self, problem: QuantizeBlocksProblem, q: torch.Tensor, scale: torch.Tensor, x: torch.Tensor, eps: float
    ) -> None:
        if x.numel() == 0:
            return
        if problem.block == _TILE:
            spec, threads = tiles_spec(x.dtype, q.dtype), _tile_threads(x.dtype)
            grid = scale.shape[1] * scale.shape[2]
        else:
            spec, threads = groups_spec(x.dtype, q.dtype, problem.block[1]), _THREADS
            groups = ceil_div(problem.rows, _rows_in_flight(x.dtype)) * scale.shape[2]
            grid = ceil_div(groups, threads * LANE_ELEMENTS // problem.block[1])
        spec.load(x.device).launch((grid, problem.batch), threads, _params(problem, q, scale, x, eps))


class CudaQuantizeTensor(Backend):
    """One pass over a tensor for its largest magnitude, unless its scale is given, and one that casts it."""

    name = "cuda"
    needs_gpu = True
    min_arch = 80

    def supports(self, problem: QuantizeTensorProblem) -> Support:
        width = VECTOR_BYTES // problem.dtype.itemsize
        return Support.of(
            (
                problem.numel % width == 0,
                f"needs elements a multiple of {width} for {problem.dtype}, got {problem.numel}",
            ),
            (problem.aligned, "needs a 16-byte aligned tensor"),
        )

    def run(
        self, problem: QuantizeTensorProblem, q: torch.Tensor, scale: torch.Tensor, x: torch.Tensor, eps: float
    ) -> None:
        vectors = problem.numel * x.element_size() // VECTOR_BYTES
        amax_bits = None if problem.static else torch.zeros(1, dtype=torch.int32, device=x.device)
        params = QuantizeTensorParams(x=x, q=q, scale=scale, amax_bits=amax_bits, vectors=vectors, eps=eps)
        # At least one block, which writes the scale of an empty tensor.
        grid = max(1, min(ceil_div(vectors, _THREADS), _WAVES * sm_count(x.device)))
        if amax_bits is not None:
            amax_spec(x.dtype).load(x.device).launch(grid, _THREADS, params)
        cast_spec(x.dtype, q.dtype).load(x.device).launch(grid, _THREADS, params)
