"""Launch of the paged-cache kernels of `page.cuh`."""

from __future__ import annotations

import functools
import math
from typing import Annotated

import torch

from warploom.attention.backends.cuda.alignment import common_alignment, vector_width
from warploom.attention.problems.page import AppendProblem, PageTableProblem
from warploom.core.backends import Backend, Support
from warploom.core.device import sm_count
from warploom.core.jit import KernelSpec, ParamStruct, cpp_type, i32, i64, ptr, u32

_HEADER = "warploom/attention/page.cuh"
_MAX_THREADS = 256
_VECTORS_PER_THREAD = 4  # 64 bytes in flight per thread hide the latency of HBM at half occupancy
_TABLE_THREADS = 256
# Types that carry bits without meaning, by bytes.
_BITS = {16: "uint4", 8: "uint2", 4: "unsigned int", 2: "unsigned short", 1: "unsigned char"}


class AppendParams(ParamStruct):
    cpp_name = "warploom::attention::AppendParams"
    rows: Annotated[ptr, 2]
    cache: Annotated[ptr, 2]
    batch_indices: ptr
    positions: ptr
    kv_indices: ptr
    kv_indptr: ptr
    row_stride: Annotated[i64, 2]
    row_head_stride: Annotated[i64, 2]
    page_stride: Annotated[i64, 2]
    entry_stride: Annotated[i64, 2]
    cache_head_stride: Annotated[i64, 2]
    head_vectors: Annotated[u32, 2]
    row_vectors: Annotated[u32, 2]
    nnz: i32
    page_size: u32


class BatchIndicesPositionsParams(ParamStruct):
    cpp_name = "warploom::attention::BatchIndicesPositionsParams"
    batch_indices: ptr
    positions: ptr
    append_indptr: ptr
    seq_lens: ptr
    batch: i32
    nnz: i32


class SeqLensParams(ParamStruct):
    cpp_name = "warploom::attention::SeqLensParams"
    seq_lens: ptr
    kv_indptr: ptr
    kv_last_page_len: ptr
    batch: i32
    page_size: i32


def _append_spec(row_type: str, cache_type: str, vector: int) -> KernelSpec:
    config = {
        "In": row_type,
        "Out": cache_type,
        "kVec": vector,
        "kVectorsPerThread": _VECTORS_PER_THREAD,
        "kMaxThreads": _MAX_THREADS,
    }
    wide = row_type == "uint4" or vector * {"float": 4, "__half": 2, "__nv_bfloat16": 2}.get(row_type, 1) == 16
    return KernelSpec(
        family="attention",
        header=_HEADER,
        kernel="warploom::attention::append_paged_kv_cache_kernel",
        config=config,
        params=(AppendParams,),
        expect_sass=("LDG.E.EF.128",) if wide else (),
    )


@functools.cache
def copy_spec(nbytes: int) -> KernelSpec:
    """Rows of the cache's own dtype, whatever it is, moved `nbytes` at a time."""
    return _append_spec(_BITS[nbytes], _BITS[nbytes], 1)


@functools.cache
def convert_spec(input_dtype: torch.dtype, cache_dtype: torch.dtype, vector: int) -> KernelSpec:
    """Rows rounded to another dtype, `vector` elements at a time."""
    return _append_spec(cpp_type(input_dtype), cpp_type(cache_dtype), vector)


def _table_spec(kernel: str, params: type[ParamStruct]) -> KernelSpec:
    return KernelSpec(
        family="attention",
        header=_HEADER,
        kernel=f"warploom::attention::{kernel}",
        config={"kThreads": _TABLE_THREADS},
        params=(params,),
    )


BATCH_INDICES_POSITIONS_SPEC = _table_spec("batch_indices_positions_kernel", BatchIndicesPositionsParams)
SEQ_LENS_SPEC = _table_spec("seq_lens_kernel", SeqLensParams)


def append_shape(nnz: int, row_vectors: int, num_sms: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Grid and block for `nnz` tokens of `row_vectors` vectors each.

    A thread takes several vectors of one token. With few tokens it takes one, to spread the little work over more SMs.
    """
    fills_gpu = nnz * row_vectors >= num_sms * _MAX_THREADS * _VECTORS_PER_THREAD
    lanes = min(_MAX_THREADS, math.ceil(row_vectors / _VECTORS_PER_THREAD) if fills_gpu else row_vectors)
    tokens = min(nnz, _MAX_THREADS // lanes)
    return (math.ceil(nnz / tokens), math.ceil(row_vectors / (lanes * _VECTORS_PER_THREAD))), (lanes, tokens)


class CudaAppend(Backend):
    name = "cuda"
    needs_gpu = True
    min_arch = 80

    def supports(self, problem: AppendProblem) -> Support:
        return Support.of((problem.unit_strides, "needs the last dimension of rows and caches to be contiguous"))

    def run(
        self,
        problem: AppendProblem,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        batch_indices: torch.Tensor,
        positions: torch.Tensor,
        kv_indices: torch.Tensor,
        kv_indptr: torch.Tensor,
    ) -> None:
        if key.numel() + value.numel() == 0 or k_cache.shape[0] == 0:
            return
        rows, caches = (key, value), (k_cache, v_cache)
        spec, vector, element = _access(problem, rows, caches)
        row_vectors = [r.shape[1] * r.shape[2] // vector for r in rows]
        params = AppendParams(
            rows=rows,
            cache=caches,
            batch_indices=batch_indices,
            positions=positions,
            kv_indices=kv_indices,
            kv_indptr=kv_indptr,
            row_stride=[r.stride(0) // element for r in rows],
            row_head_stride=[r.stride(1) // element for r in rows],
            page_stride=[c.stride(0) // element for c in caches],
            entry_stride=[c.stride(1) // element for c in caches],
            cache_head_stride=[c.stride(2) // element for c in caches],
            head_vectors=[_head_length(r, c) // vector for r, c in zip(rows, caches)],
            row_vectors=row_vectors,
            nnz=key.shape[0],
            page_size=k_cache.shape[1],
        )
        grid, block = append_shape(key.shape[0], sum(row_vectors), sm_count(key.device))
        spec.load(key.device).launch(grid, block, params)


def _access(
    problem: AppendProblem, rows: tuple[torch.Tensor, ...], caches: tuple[torch.Tensor, ...]
) -> tuple[KernelSpec, int, int]:
    """The kernel instance, how many elements one of its accesses takes, and how many one of *its* elements stands for."""
    if problem.converts:
        vector = vector_width(*rows, *caches)
        return convert_spec(problem.input_dtype, problem.cache_dtype, vector), vector, 1
    nbytes = min(map(common_alignment, (*rows, *caches)))
    element = nbytes // rows[0].element_size()
    return copy_spec(nbytes), element, element


def _head_length(rows: torch.Tensor, cache: torch.Tensor) -> int:
    """Contiguous elements of a token: one head, or all heads if neither tensor has gaps between them."""
    _, num_heads, dim = rows.shape
    return num_heads * dim if rows.stride(1) == dim and cache.stride(2) == dim else dim


class CudaBatchIndicesPositions(Backend):
    name = "cuda"
    needs_gpu = True
    min_arch = 80

    def supports(self, problem: PageTableProblem) -> Support:
        return Support()

    def run(
        self,
        problem: PageTableProblem,
        batch_indices: torch.Tensor,
        positions: torch.Tensor,
        append_indptr: torch.Tensor,
        seq_lens: torch.Tensor,
    ) -> None:
        nnz = batch_indices.shape[0]
        params = BatchIndicesPositionsParams(
            batch_indices=batch_indices,
            positions=positions,
            append_indptr=append_indptr,
            seq_lens=seq_lens,
            batch=seq_lens.shape[0],
            nnz=nnz,
        )
        kernel = BATCH_INDICES_POSITIONS_SPEC.load(append_indptr.device)
        kernel.launch(math.ceil(nnz / _TABLE_THREADS), _TABLE_THREADS, params)


class CudaSeqLens(Backend):
    name = "cuda"
    needs_gpu = True
    min_arch = 80

    def supports(self, problem: PageTableProblem) -> Support:
        return Support()

    def run(
        self,
        problem: PageTableProblem,
        seq_lens: torch.Tensor,
        kv_indptr: torch.Tensor,
        kv_last_page_len: torch.Tensor,
        page_size: int,
    ) -> None:
        batch = seq_lens.shape[0]
        params = SeqLensParams(
            seq_lens=seq_lens, kv_indptr=kv_indptr, kv_last_page_len=kv_last_page_len, batch=batch, page_size=page_size
        )
        SEQ_LENS_SPEC.load(kv_indptr.device).launch(math.ceil(batch / _TABLE_THREADS), _TABLE_THREADS, params)
