// How far the approximate logarithms of `warploom/sampling/race.cuh` are from the exact ones, over all random words.
#pragma once

#include "warploom/sampling/race.cuh"

namespace warploom::test {

struct RaceErrorParams {
  double* worst;  // largest absolute difference; 0 before
  float* bound;   // `kKeyError`
};

// Any grid.
template <class Config>
__global__ void race_error_kernel(const __grid_constant__ RaceErrorParams params) {
  double worst = 0.0;
  const uint64_t step = uint64_t(gridDim.x) * blockDim.x;
  for (uint64_t word = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; word < 1ull << 32; word += step) {
    const double exact = -log2(sampling::exponential_exact(uint32_t(word)) * 1.4426950408889634);
    worst = fmax(worst, fabs(double(sampling::log2_rate(uint32_t(word))) - exact));
  }
  // Positive numbers are in the order of their bits.
  atomicMax(reinterpret_cast<unsigned long long*>(params.worst), __double_as_longlong(worst));
  if (blockIdx.x == 0 && threadIdx.x == 0) *params.bound = sampling::kKeyError;
}

}  // namespace warploom::test
