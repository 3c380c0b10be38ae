// Loads and stores with an order and a scope, for flags between blocks and between GPUs; programmatic dependent launch.
#pragma once

#include "warploom/common.cuh"

namespace warploom {

// System scope: other GPUs and the host see them.
WL_DEVICE uint32_t load_acquire_system(const uint32_t* pointer) {
  uint32_t value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(pointer) : "memory");
  return value;
}
WL_DEVICE void store_release_system(uint32_t* pointer, uint32_t value) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(pointer), "r"(value) : "memory");
}
WL_DEVICE uint32_t load_relaxed_system(const uint32_t* pointer) {
  uint32_t value;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(pointer) : "memory");
  return value;
}
WL_DEVICE void store_relaxed_system(uint32_t* pointer, uint32_t value) {
  asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(pointer), "r"(value) : "memory");
}
WL_DEVICE uint64_t load_relaxed_system(const uint64_t* pointer) {
  uint64_t value;
  asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(pointer) : "memory");
  return value;
}
WL_DEVICE void store_relaxed_system(uint64_t* pointer, uint64_t value) {
  asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(pointer), "l"(value) : "memory");
}

// GPU scope: other blocks of this GPU see them.
WL_DEVICE uint32_t load_acquire_gpu(const uint32_t* pointer) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(pointer) : "memory");
  return value;
}
WL_DEVICE void store_release_gpu(uint32_t* pointer, uint32_t value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(pointer), "r"(value) : "memory");
}

// A barrier of some warps of a block; `barrier` is 1 to 15, 0 is that of __syncthreads().
WL_DEVICE void sync_threads_of(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
// Counts in for such a barrier and goes on; others wait there.
WL_DEVICE void arrive_for_threads_of(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
// Such a barrier, and whether it is true of any of them.
WL_DEVICE bool any_of_threads(int barrier, int threads, bool mine) {
  uint32_t any;
  asm volatile(
      "{\n.reg .pred p, q;\nsetp.ne.u32 p, %3, 0;\nbar.red.or.pred q, %1, %2, p;\nselp.u32 %0, 1, 0, q;\n}"
      : "=r"(any)
      : "r"(barrier), "r"(threads), "r"(uint32_t(mine))
      : "memory");
  return any;
}

// Registers of a warpgroup's threads: gives some back, takes some (sm_90a). A kernel needs a launch bound for that.
template <int kRegisters>
WL_DEVICE void give_registers() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}
template <int kRegisters>
WL_DEVICE void take_registers() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}

// Nanoseconds since some start, the same clock on all SMs; it ticks about every microsecond.
WL_DEVICE uint64_t global_nanoseconds() {
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

// Programmatic dependent launch: wait until what the previous kernel of the stream wrote is visible. A no-op without it.
WL_DEVICE void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Allow the next kernel of the stream to start its independent part.
WL_DEVICE void allow_next_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace warploom
