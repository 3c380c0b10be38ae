"""Launch of the quantisers of ``quantize_fused.cuh``, which compute what they quantise."""

from __future__ import annotations

import functools

import torch

from warploom.core.backends import Backend, Support
from warploom.core.device import sm_count
from warploom.core.jit import KernelSpec, ParamStruct, cpp_type, f32, i32, i64, ptr, u32
from warploom.gemm.backends.cuda.quantize import GROUP_SIZES, LANE_ELEMENTS, MAX_GRID_Y, VECTOR_BYTES
from warploom.gemm.problems.quantize_fused import RmsNormQuantProblem, SiluAndMulQuantProblem
from warploom.gemm.scales import ceil_div

__all__ = ["CudaRmsNormQuant", "CudaSiluAndMulQuant", "rmsnorm_spec", "row_in_registers", "silu_spec"]

_HEADER = "warploom/gemm/quantize_fused.cuh"
_THREADS = 256  # of SiLU
_MASKED_BLOCKS = 4  # for each SM: 1024 threads with four vectors in flight
_MAX_MATRICES = 1024  # of which the masked kernel numbers the rows in shared memory
_MAX_PIECES = 2**31  # numbered in 32 bits
_MAX_COLUMNS = 16384  # of a row that one thread block holds in registers
_WARP = 32
# Which elements share a scale, as `kScales` of the kernels.
_SCALE_OF_GROUP, _SCALE_OF_ROW, _SCALE_GIVEN = range(3)
_WIDE_LANES = 512  # columns dealt to the lanes of a warp where no group says how


class SiluQuantizeParams(ParamStruct):
    cpp_name = "warploom::gemm::SiluQuantizeParams"
    x: ptr
    q: ptr
    scale: ptr
    counts: ptr
    x_batch_stride: i64
    x_row_stride: i64
    scale_batch_stride: i64
    scale_row_stride: i64
    scale_column_stride: i64
    count_stride: i64
    batch: u32
    rows: u32
    columns: u32
    column_blocks: u32
    eps: f32
    power_of_two: i32


class RmsNormQuantizeParams(ParamStruct):
    cpp_name = "warploom::gemm::RmsNormQuantizeParams"
    x: ptr
    weight: ptr
    residual: ptr
    q: ptr
    scale: ptr
    x_batch_stride: i64
    x_row_stride: i64
    residual_batch_stride: i64
    residual_row_stride: i64
    scale_batch_stride: i64
    scale_row_stride: i64
    scale_column_stride: i64
    rows: u32
    columns: u32
    norm_eps: f32
    eps: f32
    power_of_two: i32


def _scales(group_size: int | None) -> dict[str, int]:
    """Which elements share a scale, and the columns that are dealt to lanes together."""
    if group_size is None:
        return {"kScales": _SCALE_GIVEN, "kGroup": _WIDE_LANES}
    if group_size == -1:
        return {"kScales": _SCALE_OF_ROW, "kGroup": _WIDE_LANES}
    return {"kScales": _SCALE_OF_GROUP, "kGroup": group_size}


def _spec(
    kernel: str, params: type[ParamStruct], dtype: torch.dtype, out_dtype: torch.dtype, **values: int
) -> KernelSpec:
    return KernelSpec(
        family="gemm",
        header=_HEADER,
        kernel=f"warploom::gemm::{kernel}",
        config={"In": cpp_type(dtype), "Out": cpp_type(out_dtype), **values},
        params=(params,),
        expect_sass=("LDG.E.EF.128",),
    )


@functools.cache
def silu_spec(dtype: torch.dtype, out_dtype: torch.dtype, group_size: int | None, masked: bool = False) -> KernelSpec:
    """SiLU-and-multiply; `group_size` as in `SiluAndMulQuantProblem`."""
    kernel = "masked_silu_quantize_kernel" if masked else "silu_quantize_kernel"
    return _spec(kernel, SiluQuantizeParams, dtype, out_dtype, **_scales(group_size), kThreads=_THREADS)


@functools.cache
def rmsnorm_spec(
    dtype: torch.dtype, out_dtype: torch.dtype, group_size: int | None, residual: bool, pieces: int = 2
) -> KernelSpec:
    """RMSNorm of any number of columns; `pieces` as of `row_in_registers`."""
    return _spec(
        "rmsnorm_quantize_kernel",
        RmsNormQuantizeParams,
        dtype,
        out_dtype,
        **_scales(group_size),
        kResidual=residual,
        kPieces=pieces,
    )


def _column_blocks(columns: int, group_size: int | None) -> int:
    """Parts of a row that are dealt to lanes, each by itself: the groups, if there are any."""
    return ceil_div(columns, _scales(group_size)["kGroup"])


def _pieces(columns: int, group_size: int | None) -> int:
    """Pieces of `LANE_ELEMENTS` columns that a row is dealt out in."""
    return _column_blocks(columns, group_size) * (_scales(group_size)["kGroup"] // LANE_ELEMENTS)


def row_in_registers(columns: int, group_size: int | None) -> tuple[int, int]:
    """Threads that hold a row, and pieces of 16 columns in each.

    Two pieces a thread where one warp does not do: 64 bytes of loads in flight from 16-bit rows, in fewer registers a byte
    than with one.

    Examples
    --------
    >>> row_in_registers(7168, 128), row_in_registers(512, 128), row_in_registers(16384, -1)
    ((224, 2), (32, 1), (512, 2))
    """
    pieces = _pieces(columns, group_size)
    each = 1 if pieces <= _WARP else 2
    return ceil_div(ceil_div(pieces, each), _WARP) * _WARP, each


def _served(group_size: int | None, columns: int, dtype: torch.dtype, aligned: bool, *whole_row: int) -> Support:
    """What both kernels ask of a problem; `whole_row` is -1 where a scale of the whole row is served."""
    width = VECTOR_BYTES // dtype.itemsize
    return Support.of(
        (
            group_size is None or group_size in (*GROUP_SIZES, *whole_row),
            f"has groups of {', '.join(map(str, GROUP_SIZES))}, not {group_size}",
        ),
        (columns % width == 0, f"needs columns a multiple of {width} for {dtype}, got {columns}"),
        (aligned, "needs contiguous columns and 16-byte aligned rows"),
    )


def _scale_strides(scale: torch.Tensor) -> dict[str, int]:
    """Strides of ``[batch, rows, column_blocks]``; a given scale has none."""
    batch, row, column = scale.stride() if scale.dim() == 3 else (0, 0, 0)
    return {"scale_batch_stride": batch, "scale_row_stride": row, "scale_column_stride": column}


class CudaSiluAndMulQuant(Backend):
    """One pass over the gates and what they multiply; of a masked batch, over the rows that count."""

    name = "cuda"
    needs_gpu = True
    min_arch = 80

    def supports(self, problem: SiluAndMulQuantProblem) -> Support:
        served = _served(problem.group_size, problem.columns, problem.dtype, problem.aligned)
        if not served:
            return served
        batches = _MAX_MATRICES if problem.masked else MAX_GRID_Y
        numbered = problem.rows * (problem.batch if problem.masked else 1)
        pieces = numbered * _pieces(problem.columns, problem.group_size)
        return Support.of(
            (problem.batch <= batches, f"takes at most {batches} batches, got {problem.batch}"),
            (pieces <= _MAX_PIECES, f"takes at most {_MAX_PIECES} pieces of {LANE_ELEMENTS} columns, got {pieces}"),
        )

    def run(
        self,
        problem: SiluAndMulQuantProblem,
        q: torch.Tensor,
        scale: torch.Tensor,
        x: torch.Tensor,
        masked_m: torch.Tensor | None,
        eps: float,
    ) -> None:
        if q.numel() == 0:
            return
        params = SiluQuantizeParams(
            x=x,
            q=q,
            scale=scale,
            counts=masked_m,
            x_batch_stride=x.stride(0),
            x_row_stride=x.stride(1),
            **_scale_strides(scale),
            count_stride=0 if masked_m is None else masked_m.stride(0) * (masked_m.element_size() // 4),
            batch=problem.batch,
            rows=problem.rows,
            columns=problem.columns,
            column_blocks=_column_blocks(problem.columns, problem.group_size),
            eps=eps,
            power_of_two=problem.power_of_two,
        )
        pieces = problem.rows * _pieces(problem.columns, problem.group_size)
        spec = silu_spec(x.dtype, q.dtype, problem.group_size, problem.masked)
        if problem.masked:
            blocks = ceil_div(pieces * problem.batch, _THREADS)
            grid: tuple[int, ...] = (min(blocks, _MASKED_BLOCKS * sm_count(x.device)),)
        else:
            grid = (ceil_div(pieces, _THREADS), problem.batch)
        spec.load(x.device).launch(grid, _THREADS, params)


class CudaRmsNormQuant(Backend):
    """One pass over the rows and their residual; a thread block holds a row in registers."""

    name = "cuda"
    needs_gpu = True
    min_arch = 80

    def supports(self, problem: RmsNormQuantProblem) -> Support:
        return _served(problem.group_size, problem.columns, problem.dtype, problem.aligned, -1) & Support.of(
            (
                problem.columns <= _MAX_COLUMNS,
                f"holds at most {_MAX_COLUMNS} columns in registers, got {problem.columns}",
            ),
            (problem.weight_dtype == problem.dtype, f"needs a weight of {problem.dtype}, got {problem.weight_dtype}"),
            (
                problem.residual_dtype in (None, problem.dtype),
                f"needs a residual of {problem.dtype}, got {problem.residual_dtype}",
            ),
            (problem.batch <= MAX_GRID_Y, f"takes at most {MAX_GRID_Y} batches, got {problem.batch}"),
        )

    def run(
        self,
        problem: RmsNormQuantProblem,
        q: torch.Tensor,
        scale: torch.Tensor,
        residual: torch.Tensor | None,
        x: torch.Tensor,
        weight: torch.Tensor,
        norm_eps: float,
        eps: float,
    ) -> None:
        if q.numel() == 0:
            return
        params = RmsNormQuantizeParams(
            x=x,
            weight=weight,
            residual=residual,
            q=q,
            scale=scale,
            x_batch_stride=x.stride(0),
            x_row_stride=x.stride(1),
            residual_batch_stride=0 if residual is None else residual.stride(0),
            residual_row_stride=0 if residual is None else residual.stride(1),
            **_scale_strides(scale),
            rows=problem.rows,
            columns=problem.columns,
            norm_eps=norm_eps,
            eps=eps,
            power_of_two=problem.power_of_two,
        )
        threads, pieces = row_in_registers(problem.columns, problem.group_size)
        spec = rmsnorm_spec(x.dtype, q.dtype, problem.group_size, residual is not None, pieces)
        spec.load(x.device).launch((problem.rows, problem.batch), threads, params)
