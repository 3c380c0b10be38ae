"""Specs of the kernels in ``kernels.cuh``, shared by the CPU and GPU tests of the JIT."""

from pathlib import Path

from warploom.core.jit import KernelSpec, ParamStruct, f32, i32, i64, ptr
from warploom.core.jit.spec import TENSOR_MAP

HERE = str(Path(__file__).parent)


class AddParams(ParamStruct):
    cpp_name = "warploom::test::AddParams"
    x: ptr
    out: ptr
    n: i64
    value: f32


class RowSumParams(ParamStruct):
    cpp_name = "warploom::test::RowSumParams"
    x: ptr
    out: ptr
    columns: i32


class ClusterParams(ParamStruct):
    cpp_name = "warploom::test::ClusterParams"
    out: ptr


class TileParams(ParamStruct):
    cpp_name = "warploom::test::TileParams"
    tiles_x: i64


def toy(kernel, params, **config):
    return KernelSpec(
        family="test",
        header="kernels.cuh",
        kernel=f"warploom::test::{kernel}",
        config=config,
        params=params,
        include_dirs=(HERE,),
    )


ADD = toy("add_kernel", (AddParams,), kThreads=256)
ROW_SUM = toy("row_sum_kernel", (RowSumParams,), kThreads=128)
CLUSTER = toy("cluster_kernel", (ClusterParams,), kUnused=0)
TILE_COPY = toy("tile_copy_kernel", (TENSOR_MAP, TENSOR_MAP, TileParams), kRows=16, kColumns=32)
