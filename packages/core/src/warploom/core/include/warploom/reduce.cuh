// Reductions over a warp and over a thread block. The order is fixed, so results are the same on every run.
#pragma once

#include "warploom/common.cuh"

namespace warploom {

struct Sum {
  template <class T>
  WL_DEVICE T operator()(T a, T b) const { return a + b; }
};
struct Max {
  WL_DEVICE float operator()(float a, float b) const { return fmaxf(a, b); }
  WL_DEVICE int operator()(int a, int b) const { return max(a, b); }
};
// Keeps NaN: fmaxf would drop it, and with it the only trace of a broken activation.
struct MaxNan {
  WL_DEVICE float operator()(float a, float b) const {
    float y;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
  }
};
struct Min {
  WL_DEVICE float operator()(float a, float b) const { return fminf(a, b); }
  WL_DEVICE int operator()(int a, int b) const { return min(a, b); }
};

// Every lane of each group of kLanes gets the result.
template <int kLanes = kWarpSize, class T, class Op>
WL_DEVICE T warp_reduce(T value, Op op) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) value = op(value, __shfl_xor_sync(kFullMask, value, offset));
  return value;
}

// The sum over the lanes up to and with this one; `kLanes`, a power of two, have something.
template <int kLanes = kWarpSize, class T>
WL_DEVICE T warp_prefix_sum(T value) {
#pragma unroll
  for (int offset = 1; offset < kLanes; offset *= 2) {
    const T other = __shfl_up_sync(kFullMask, value, offset);
    if (lane_id() >= offset) value += other;
  }
  return value;
}

// Every thread of the block gets the result. `scratch` holds kThreads / 32 values; it may be reused after the next barrier.
template <int kThreads, class T, class Op>
WL_DEVICE T block_reduce(T value, Op op, T* scratch) {
  constexpr int kWarps = kThreads / kWarpSize;
  value = warp_reduce(value, op);
  if constexpr (kWarps == 1) return value;
  if (lane_id() == 0) scratch[warp_id()] = value;
  __syncthreads();
  value = scratch[0];
#pragma unroll
  for (int warp = 1; warp < kWarps; ++warp) value = op(value, scratch[warp]);
  return value;
}

}  // namespace warploom
