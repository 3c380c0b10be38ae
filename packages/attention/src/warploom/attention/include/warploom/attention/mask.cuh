// Packing of masks: eight flags become a byte. A thread makes one byte, of one segment.
#pragma once

#include "warploom/attention/ragged.cuh"

namespace warploom::attention {

// Strides are in elements.
struct PackbitsParams {
  const uint8_t* x;          // [flags], of which what is not 0 counts as 1
  uint8_t* out;              // [bytes]
  const void* indptr;        // [batch + 1], where each segment's flags start; or null: one segment
  const int* packed_indptr;  // [batch + 1], where its bytes start; bytes beyond the last become 0
  int64_t num_flags;
  int64_t num_bytes;
  int64_t x_stride;
  int64_t out_stride;
  int batch;
  int big;  // the first of eight flags is the highest bit
};

template <class Config>
__global__ void __launch_bounds__(Config::kThreads) packbits_kernel(const __grid_constant__ PackbitsParams params) {
  using Index = typename Config::Index;
  const int64_t byte = int64_t(blockIdx.x) * Config::kThreads + threadIdx.x;
  if (byte >= params.num_bytes) return;
  int64_t first = byte * 8, end = params.num_flags;
  if (params.indptr) {
    const auto* indptr = static_cast<const Index*>(params.indptr);
    const int segment = request_of_row(params.packed_indptr, params.batch, byte);
    first = segment < 0 ? end : indptr[segment] + (byte - params.packed_indptr[segment]) * 8;
    if (segment >= 0) end = min(int64_t(indptr[segment + 1]), end);
  }
  uint32_t bits = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const bool flag = first + i < end && params.x[(first + i) * params.x_stride] != 0;
    bits |= uint32_t(flag) << (params.big ? 7 - i : i);
  }
  params.out[byte * params.out_stride] = uint8_t(bits);
}

}  // namespace warploom::attention
