// Writing to the paged cache, and the arithmetic on page tables that serves it.
//
// Head count, head dim, page size, layout (NHD or HND, one tensor or two) and batch are run-time values: a layout is nothing
// but strides. Keys and values are two planes [0] and [1] of one launch; the planes' head dims may differ, so latents and
// rotary keys of multi-head latent attention take the same kernel.
#pragma once

#include "warploom/attention/ragged.cuh"
#include "warploom/convert_fp8.cuh"
#include "warploom/global_store.cuh"

namespace warploom::attention {

// Strides are in elements of Config::In (rows) and Config::Out (cache); components of a head are contiguous.
struct AppendParams {
  const void* rows[2];        // [nnz, heads, dim]
  void* cache[2];             // [pages, page_size, heads, dim]
  const int* batch_indices;   // [nnz], negative: padding
  const int* positions;       // [nnz], negative: padding
  const int* kv_indices;      // pages of all requests
  const int* kv_indptr;       // [batch + 1]
  int64_t row_stride[2];
  int64_t row_head_stride[2];
  int64_t page_stride[2];
  int64_t entry_stride[2];
  int64_t cache_head_stride[2];
  uint32_t row_vectors[2];    // vectors of kVec elements in all heads of a token
  uint32_t head_vectors[2];   // in one head
  uint32_t head_magic[2];     // ceil(2^31 / head_vectors); 0 if heads follow one another without gaps and count as one
  int nnz;
  uint32_t page_size;
};

struct Slot {
  int64_t page;
  int64_t entry;
  bool owned;
};

// Three dependent loads: about as long as reading the rows, which therefore is started before.
WL_DEVICE Slot find_slot(const AppendParams& params, int64_t row) {
  const int request = params.batch_indices[row];
  const int position = params.positions[row];
  if (request < 0 || position < 0) return {0, 0, false};
  const uint32_t page_in_request = uint32_t(position) / params.page_size;
  const int page = params.kv_indices[int64_t(params.kv_indptr[request]) + page_in_request];
  return {page, int64_t(uint32_t(position) - page_in_request * params.page_size), true};
}

// Offset of a token's vector, given the stride of heads. A multiplication instead of a division: the divisions were a
// third of the kernel's instructions. Exact while row_vectors * head_vectors < 2^31.
template <int kVec>
WL_DEVICE int64_t offset_in_token(const AppendParams& params, int plane, uint32_t vector, int64_t head_stride) {
  const uint32_t head = __umulhi(2 * vector, params.head_magic[plane]);
  return int64_t(head) * head_stride + int64_t(vector - head * params.head_vectors[plane]) * kVec;
}

template <class In>
WL_DEVICE const In* row_of(const AppendParams& params, int plane, int64_t row) {
  return static_cast<const In*>(params.rows[plane]) + row * params.row_stride[plane];
}

template <class Out>
WL_DEVICE Out* entry_of(const AppendParams& params, int plane, const Slot& slot) {
  return static_cast<Out*>(params.cache[plane]) + slot.page * params.page_stride[plane] + slot.entry * params.entry_stride[plane];
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

// Config: In, Out, kVec, kParts, kMaxThreads. Equal types copy bits, so an integer type serves every dtype of its size.
// Block (lanes, tokens); grid (groups of tokens, parts of a token). Thread x moves vectors x, x + lanes, ... of both planes.
template <class Config>
__global__ void __launch_bounds__(Config::kMaxThreads) append_paged_kv_cache_kernel(const __grid_constant__ AppendParams params) {
  using In = typename Config::In;
  using Out = typename Config::Out;
  constexpr int kVec = Config::kVec;
  constexpr int kParts = Config::kParts;

  const int64_t row = int64_t(blockIdx.x) * blockDim.y + threadIdx.y;
  if (row >= params.nnz) return;
  const uint32_t first = blockIdx.y * (blockDim.x * kParts) + threadIdx.x;

  Vec<In, kVec> held[2][kParts];
#pragma unroll
  for (int plane = 0; plane < 2; ++plane) {
    const In* source = row_of<In>(params, plane, row);
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const uint32_t vector = first + part * blockDim.x;
      if (vector < params.row_vectors[plane])
        held[plane][part] = Vec<In, kVec>::load_streaming(
            source + offset_in_token<kVec>(params, plane, vector, params.row_head_stride[plane]));
    }
  }

  const Slot slot = find_slot(params, row);
  if (!slot.owned) return;
#pragma unroll
  for (int plane = 0; plane < 2; ++plane) {
    Out* target = entry_of<Out>(params, plane, slot);
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const uint32_t vector = first + part * blockDim.x;
      if (vector < params.row_vectors[plane])
        store_global(target + offset_in_token<kVec>(params, plane, vector, params.cache_head_stride[plane]),
                     convert<Out>(held[plane][part]));
    }
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
