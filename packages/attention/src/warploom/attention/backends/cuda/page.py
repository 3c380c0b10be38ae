"""Launch of the paged-cache kernels of `page.cuh`."""

from __future__ import annotations

import functools
import math
from typing import Annotated

import torch

from warploom.attention.backends.cuda.alignment import MAX_BYTES, common_alignment, vector_width
from warploom.attention.problems.page import AppendProblem, PageTableProblem
from warploom.core.backends import Backend, Support
from warploom.core.device import sm_count
from warploom.core.jit import KernelSpec, ParamStruct, PreparedLaunch, cpp_type, i32, i64, ptr, u32

_HEADER = "warploom/attention/page.cuh"
_MAX_THREADS = 256
_PARTS = 2  # with two planes, 64 bytes in flight per thread: enough to hide the latency of HBM at half occupancy
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
    row_vectors: Annotated[u32, 2]
    head_vectors: Annotated[u32, 2]
    head_magic: Annotated[u32, 2]
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


def _append_spec(row_type: str, cache_type: str, vector: int, row_bytes: int) -> KernelSpec:
    config: dict[str, str | bool | int] = {"In": row_type, "Out": cache_type, "kVec": vector}
    config |= {"kParts": _PARTS, "kMaxThreads": _MAX_THREADS}
    return KernelSpec(
        family="attention",
        header=_HEADER,
        kernel="warploom::attention::append_paged_kv_cache_kernel",
        config=config,
        params=(AppendParams,),
        expect_sass=("LDG.E.EF.128",) if row_bytes == MAX_BYTES else (),
    )


@functools.cache
def copy_spec(nbytes: int) -> KernelSpec:
    """Rows of the cache's own dtype, whatever it is, moved `nbytes` at a time."""
    return _append_spec(_BITS[nbytes], _BITS[nbytes], 1, nbytes)


@functools.cache
def convert_spec(input_dtype: torch.dtype, cache_dtype: torch.dtype, vector: int) -> KernelSpec:
    """Rows rounded to another dtype, `vector` elements at a time."""
    return _append_spec(cpp_type(input_dtype), cpp_type(cache_dtype), vector, vector * input_dtype.itemsize)


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
    """Grid and block for `nnz` tokens with `row_vectors` vectors in the larger plane of each.

    A thread takes several vectors of one token. With few tokens it takes one, to spread the little work over more SMs.
    """
    fills_gpu = nnz * row_vectors >= num_sms * _MAX_THREADS * _PARTS
    lanes = min(_MAX_THREADS, math.ceil(row_vectors / _PARTS) if fills_gpu else row_vectors)
    tokens = min(nnz, _MAX_THREADS // lanes)
    return (math.ceil(nnz / tokens), math.ceil(row_vectors / (lanes * _PARTS))), (lanes, tokens)


def head_magic(num_heads: int, head_vectors: int, dense: bool) -> int:
    """Multiplier by which the kernel divides by `head_vectors`; 0 makes every vector one of head 0."""
    return 0 if dense or num_heads == 1 else -(-(2**31) // head_vectors)


def append_support(problem: AppendProblem) -> Support:
    """What the kernels of `page.cuh` that write to the cache refuse."""
    # In bytes, so that it holds for accesses of any width.
    head_bytes = max(problem.key_dim, problem.value_dim) * problem.input_dtype.itemsize
    return Support.of(
        (problem.unit_strides, "needs the last dimension of rows and caches to be contiguous"),
        (problem.num_kv_heads * head_bytes**2 < 2**31, f"heads of {head_bytes} bytes are too large"),
    )


def append_params(
    rows: tuple[torch.Tensor, torch.Tensor],
    caches: tuple[torch.Tensor, torch.Tensor],
    table: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    vector: int,
    element: int = 1,
) -> AppendParams:
    """Rows ``[nnz, num_kv_heads, dim]``, caches ``[pages, page_size, num_kv_heads, dim]`` and the page table.

    An access has `vector` elements of the tensors, and what the kernel takes for an element is `element` of them.
    """
    row_strides = [[stride // element for stride in r.stride()] for r in rows]
    cache_strides = [[stride // element for stride in c.stride()] for c in caches]
    head_vectors = [r.shape[2] // vector for r in rows]
    batch_indices, positions, kv_indices, kv_indptr = table
    return AppendParams(
        rows=rows,
        cache=caches,
        batch_indices=batch_indices,
        positions=positions,
        kv_indices=kv_indices,
        kv_indptr=kv_indptr,
        row_stride=[strides[0] for strides in row_strides],
        row_head_stride=[strides[1] for strides in row_strides],
        page_stride=[strides[0] for strides in cache_strides],
        entry_stride=[strides[1] for strides in cache_strides],
        cache_head_stride=[strides[2] for strides in cache_strides],
        row_vectors=[r.shape[1] * count for r, count in zip(rows, head_vectors, strict=True)],
        head_vectors=head_vectors,
        head_magic=list(map(_magic, rows, caches, head_vectors)),
        nnz=rows[0].shape[0],
        page_size=caches[0].shape[1],
    )


class CudaAppend(Backend):
    name = "cuda"
    needs_gpu = True
    min_arch = 80

    def supports(self, problem: AppendProblem) -> Support:
        return append_support(problem)

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
        params = append_params(rows, caches, (batch_indices, positions, kv_indices, kv_indptr), vector, element)
        row_vectors = max(r.shape[1] * (r.shape[2] // vector) for r in rows)
        grid, block = append_shape(key.shape[0], row_vectors, sm_count(key.device))
        spec.load(key.device).launch(grid, block, params)


def _access(
    problem: AppendProblem, rows: tuple[torch.Tensor, ...], caches: tuple[torch.Tensor, ...]
) -> tuple[KernelSpec, int, int]:
    """The kernel instance, how many elements an access of it takes, and how many one of *its* elements stands for."""
    if problem.converts:
        vector = vector_width(*rows, *caches)
        return convert_spec(problem.input_dtype, problem.cache_dtype, vector), vector, 1
    nbytes = common_alignment(*rows, *caches)
    element = nbytes // rows[0].element_size()
    return copy_spec(nbytes), element, element


def _magic(rows: torch.Tensor, cache: torch.Tensor, head_vectors: int) -> int:
    # Dense heads follow one another without gaps in both tensors and are copied as one.
    dense = rows.stride(1) == rows.shape[2] == cache.stride(2)
    return head_magic(rows.shape[1], head_vectors, dense)


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
        if seq_lens.shape[0] > 0:
            launch = _seq_lens_launch(kv_indptr.device, seq_lens.shape[0], page_size)
            launch.launch(seq_lens.data_ptr(), kv_indptr.data_ptr(), kv_last_page_len.data_ptr())


@functools.lru_cache(256)
def _seq_lens_launch(device: torch.device, batch: int, page_size: int) -> PreparedLaunch:
    """The launch but for the tensors, which plans in graph mode ask for at every step."""
    tensors = dict.fromkeys(("seq_lens", "kv_indptr", "kv_last_page_len"))
    params = SeqLensParams(**tensors, batch=batch, page_size=page_size)
    grid = math.ceil(batch / _TABLE_THREADS)
    return SEQ_LENS_SPEC.load(device).prepare(grid, _TABLE_THREADS, params, pointers=len(tensors))
