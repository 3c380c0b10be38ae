// Writes what `warploom/philox.cuh` gives, for comparison with the torch reference.
#pragma once

#include "warploom/philox.cuh"

namespace warploom::test {

struct PhiloxParams {
  uint32_t* words;     // [rows, 4 * blocks]
  float* uniform;      // the same shape
  float* exponential;  // the same shape
  uint64_t seed;
  uint64_t offset;
};

// Grid: rows; threads: blocks of four draws.
template <class Config>
__global__ void philox_kernel(const __grid_constant__ PhiloxParams params) {
  const uint4 four = philox_words(params.seed, params.offset, blockIdx.x, threadIdx.x);
  const uint32_t words[4] = {four.x, four.y, four.z, four.w};
  const int64_t first = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * 4;
  for (int i = 0; i < 4; ++i) {
    params.words[first + i] = words[i];
    params.uniform[first + i] = uniform_from(words[i]);
    params.exponential[first + i] = exponential_from(words[i]);
  }
}

}  // namespace warploom::test
