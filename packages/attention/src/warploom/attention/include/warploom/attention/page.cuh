// Writing to the paged cache, and the arithmetic on page tables that serves it.
//
// Head count, head dim, page size, layout (NHD or HND, one tensor or two) and batch are run-time values: a layout is nothing
// but strides. Keys and values are two planes [0] and [1] of one launch; the planes' head dims may differ, so latents and
// rotary keys of multi-head latent attention take the same kernel.
#pragma once

#include "warploom/attention/ragged.cuh"
#include "warploom/convert_fp8.cuh"
#include "warploom/vec.cuh"

namespace warploom::attention {

// Strides are in elements of Config::In (rows) and Config::Out (cache); components of a head are contiguous.
struct AppendParams {
  const void* rows[2];      // [nnz, heads, dim]
  void* cache[2];           // [pages, page_size, heads, dim]
  const int* batch_indices; // [nnz], negative: padding
  const int* positions;     // [nnz], negative: padding
  const int* kv_indices;    // pages of all requests
  const int* kv_indptr;     // [batch + 1]
  int64_t row_stride[2];
  int64_t row_head_stride[2];
  int64_t page_stride[2];
  int64_t entry_stride[2];
  int64_t cache_head_stride[2];
  uint32_t head_vectors[2]; // vectors of kVec elements in a head
  uint32_t row_vectors[2];  // in all heads of a token
  int nnz;
  uint32_t page_size;
};

struct Slot {
  int64_t page;
  int64_t entry;
  bool owned;
};

// Three dependent loads: about as long as reading the rows, which therefore is started before.
WL_DEVICE Slot find_slot(const AppendParams& params, int row) {
  const int request = params.batch_indices[row];
  const int position = params.positions[row];
  if (request < 0 || position < 0) return {0, 0, false};
  const uint32_t page_in_request = uint32_t(position) / params.page_size;
  const int page = params.kv_indices[int64_t(params.kv_indptr[request]) + page_in_request];
  return {page, uint32_t(position) - page_in_request * params.page_size, true};
}

// Where a vector of a token lies: plane, head and first component.
struct VectorAt {
  int plane;
  uint32_t head;
  uint32_t component;
};

template <int kVec>
WL_DEVICE VectorAt locate(const AppendParams& params, uint32_t vector) {
  const int plane = vector >= params.row_vectors[0];
  if (plane) vector -= params.row_vectors[0];
  const uint32_t head = vector / params.head_vectors[plane];
  return {plane, head, (vector - head * params.head_vectors[plane]) * kVec};
}

template <class Out, class In, int kVec>
WL_DEVICE Vec<Out, kVec> convert(const Vec<In, kVec>& x) {
  if constexpr (is_same_v<In, Out>) {
    return x;
  } else {
    Vec<Out, kVec> y;
#pragma unroll
    for (int i = 0; i < kVec; ++i) y[i] = from_float<Out>(to_float(x[i]));
    return y;
  }
}

// Config: In, Out, kVec, kVectorsPerThread, kMaxThreads. One dtype for both is a copy of bits and uses an integer type.
// Block (lanes, tokens); grid (groups of tokens, parts of a token). Thread x moves vectors x, x + lanes, ...
template <class Config>
__global__ void __launch_bounds__(Config::kMaxThreads) append_paged_kv_cache_kernel(const __grid_constant__ AppendParams params) {
  using In = typename Config::In;
  using Out = typename Config::Out;
  constexpr int kVec = Config::kVec;
  constexpr int kCount = Config::kVectorsPerThread;

  const int64_t row = int64_t(blockIdx.x) * blockDim.y + threadIdx.y;
  if (row >= params.nnz) return;
  const uint32_t first = blockIdx.y * (blockDim.x * kCount) + threadIdx.x;
  const uint32_t end = params.row_vectors[0] + params.row_vectors[1];

  Vec<In, kVec> held[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const uint32_t vector = first + i * blockDim.x;
    if (vector >= end) break;
    const VectorAt at = locate<kVec>(params, vector);
    const In* source = static_cast<const In*>(params.rows[at.plane]);
    held[i] = Vec<In, kVec>::load_streaming(source + row * params.row_stride[at.plane] +
                                            at.head * params.row_head_stride[at.plane] + at.component);
  }

  const Slot slot = find_slot(params, int(row));
  if (!slot.owned) return;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const uint32_t vector = first + i * blockDim.x;
    if (vector >= end) break;
    const VectorAt at = locate<kVec>(params, vector);
    Out* target = static_cast<Out*>(params.cache[at.plane]);
    convert<Out>(held[i]).store(target + slot.page * params.page_stride[at.plane] + slot.entry * params.entry_stride[at.plane] +
                                at.head * params.cache_head_stride[at.plane] + at.component);
  }
}

struct BatchIndicesPositionsParams {
  int* batch_indices;        // [nnz]
  int* positions;            // [nnz]
  const int* append_indptr;  // [batch + 1]
  const int* seq_lens;       // [batch]
  int batch;
  int nnz;
};

// The rows of a request are its last ones. Config: kThreads.
template <class Config>
__global__ void __launch_bounds__(Config::kThreads)
    batch_indices_positions_kernel(const __grid_constant__ BatchIndicesPositionsParams params) {
  const int64_t row = int64_t(blockIdx.x) * Config::kThreads + threadIdx.x;
  if (row >= params.nnz) return;
  const int request = request_of_row(params.append_indptr, params.batch, int(row));
  params.batch_indices[row] = request;
  params.positions[row] =
      request < 0 ? 0 : params.seq_lens[request] - params.append_indptr[request + 1] + int(row);
}

struct SeqLensParams {
  int* seq_lens;                // [batch]
  const int* kv_indptr;         // [batch + 1]
  const int* kv_last_page_len;  // [batch]
  int batch;
  int page_size;
};

// Config: kThreads.
template <class Config>
__global__ void __launch_bounds__(Config::kThreads) seq_lens_kernel(const __grid_constant__ SeqLensParams params) {
  const int request = blockIdx.x * Config::kThreads + threadIdx.x;
  if (request >= params.batch) return;
  const int pages = params.kv_indptr[request + 1] - params.kv_indptr[request];
  params.seq_lens[request] = pages > 0 ? (pages - 1) * params.page_size + params.kv_last_page_len[request] : 0;
}

}  // namespace warploom::attention
