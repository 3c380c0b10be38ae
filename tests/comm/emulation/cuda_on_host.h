// Enough of CUDA to run the collectives' kernels on the host: a thread of the host for each block, a context for each of its
// threads. They change places where one waits, so that shared memory is what a thread of the host keeps for itself.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <atomic>
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
#define __shared__ static thread_local

struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

struct Index { unsigned x = 0; };

// A barrier of threads of one block.
struct Meeting {
  unsigned arrived = 0, times = 0;
};

struct DeviceThread {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  unsigned number = 0;
  bool done = false;
};

struct DeviceBlock {
  static constexpr size_t kStackBytes = 128 << 10;
  ucontext_t scheduler;
  std::vector<DeviceThread> threads;
  std::vector<Meeting> of_warps;
  std::vector<float> lanes;  // a number of each thread
  Meeting of_all;
  DeviceThread* running = nullptr;
  std::function<void()> kernel;

  void run();
};
inline thread_local DeviceBlock* block = nullptr;
inline thread_local Index blockIdx, blockDim, gridDim;

struct ThreadIndex {
  operator unsigned() const { return block->running->number; }
};
struct {
  ThreadIndex x;
} inline threadIdx;

// Let the block's other threads run.
inline void give_way() { swapcontext(&block->running->context, &block->scheduler); }

inline void DeviceBlock::run() {
  block = this;
  for (DeviceThread& thread : threads) {
    thread.number = unsigned(&thread - threads.data());
    thread.stack = std::make_unique_for_overwrite<char[]>(kStackBytes);
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = kStackBytes;
    thread.context.uc_link = &scheduler;
    makecontext(&thread.context, +[] { block->kernel(), block->running->done = true; }, 0);
  }
  for (bool is_running = true; is_running;) {
    is_running = false;
    for (DeviceThread& thread : threads) {
      if (thread.done) continue;
      running = &thread, is_running = true;
      swapcontext(&scheduler, &thread.context);
    }
    std::this_thread::yield();  // all wait for another block, or there are more blocks than cores
  }
}

inline void meet(Meeting& meeting, unsigned number) {
  const unsigned times = meeting.times;
  if (++meeting.arrived == number) {
    meeting.arrived = 0, ++meeting.times;
  } else {
    while (meeting.times == times) give_way();
  }
}
inline void __syncthreads() { meet(block->of_all, blockDim.x); }
inline void __syncwarp() { meet(block->of_warps[threadIdx.x / 32], std::min(32u, blockDim.x - threadIdx.x / 32 * 32)); }

inline bool __syncthreads_or(bool mine) {
  block->lanes[threadIdx.x] = mine ? 1.0f : 0.0f;
  __syncthreads();
  const bool any = std::find(block->lanes.begin(), block->lanes.end(), 1.0f) != block->lanes.end();
  __syncthreads();
  return any;
}

inline unsigned __ballot_sync(unsigned, unsigned chosen) {
  block->lanes[threadIdx.x] = chosen ? 1.0f : 0.0f;
  __syncwarp();
  unsigned mask = 0;
  const unsigned first = threadIdx.x / 32 * 32;
  for (unsigned lane = 0; lane < 32 && first + lane < blockDim.x; ++lane) mask |= unsigned(block->lanes[first + lane]) << lane;
  __syncwarp();
  return mask;
}

inline unsigned __shfl_sync(unsigned, unsigned value, unsigned lane) {
  block->lanes[threadIdx.x] = std::bit_cast<float>(value);
  __syncwarp();
  const float chosen = block->lanes[threadIdx.x / 32 * 32 + lane];
  __syncwarp();
  return std::bit_cast<unsigned>(chosen);
}

inline int __ffs(unsigned bits) { return bits == 0 ? 0 : std::countr_zero(bits) + 1; }
inline int __popc(unsigned bits) { return std::popcount(bits); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __int_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline unsigned atomicExch(unsigned* pointer, unsigned value) { return std::atomic_ref(*pointer).exchange(value); }
inline unsigned atomicAdd(unsigned* pointer, unsigned value) { return std::atomic_ref(*pointer).fetch_add(value); }
size_t __cvta_generic_to_shared(const void*);
using std::max;
using std::min;

// Run a kernel to its end, as a stream would.
template <class Kernel, class... Params>
void launch(unsigned blocks, unsigned threads, Kernel kernel, const Params&... params) {
  std::vector<std::jthread> running;
  for (unsigned number = 0; number < blocks; ++number) {
    running.emplace_back([&, number] {
      blockIdx.x = number, blockDim.x = threads, gridDim.x = blocks;
      DeviceBlock own;
      own.threads = std::vector<DeviceThread>(threads);
      own.of_warps.resize((threads + 31) / 32), own.lanes.resize(threads);
      own.kernel = [&] { kernel(params...); };
      own.run();
    });
  }
}
