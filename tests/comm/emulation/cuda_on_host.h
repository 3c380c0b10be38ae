// Enough of CUDA to run the collectives' kernels on host threads: one thread of the host for each of the device.
#pragma once

#include <atomic>
#include <barrier>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static thread_local  // what blocks reduce by lies elsewhere (reduce.cuh)

struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

struct Index { unsigned x = 0; };
inline thread_local Index threadIdx, blockIdx, blockDim, gridDim;
inline thread_local std::barrier<>* block_barrier = nullptr;
inline thread_local float* block_lanes = nullptr;  // a number of each thread

inline void __syncthreads() { block_barrier->arrive_and_wait(); }
inline int __ffs(unsigned bits) { return bits == 0 ? 0 : std::countr_zero(bits) + 1; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __int_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline unsigned atomicExch(unsigned* pointer, unsigned value) { return std::atomic_ref(*pointer).exchange(value); }
size_t __cvta_generic_to_shared(const void*);

// Run a kernel to its end, as a stream would.
template <class Kernel, class... Params>
void launch(unsigned blocks, unsigned threads, Kernel kernel, const Params&... params) {
  std::vector<std::unique_ptr<std::barrier<>>> barriers;
  for (unsigned block = 0; block < blocks; ++block) barriers.push_back(std::make_unique<std::barrier<>>(threads));
  std::vector<std::vector<float>> lanes(blocks, std::vector<float>(threads));
  std::vector<std::jthread> running;
  for (unsigned block = 0; block < blocks; ++block) {
    for (unsigned thread = 0; thread < threads; ++thread) {
      running.emplace_back([&, block, thread] {
        threadIdx.x = thread, blockIdx.x = block, blockDim.x = threads, gridDim.x = blocks;
        block_barrier = barriers[block].get(), block_lanes = lanes[block].data();
        kernel(params...);
      });
    }
  }
}
