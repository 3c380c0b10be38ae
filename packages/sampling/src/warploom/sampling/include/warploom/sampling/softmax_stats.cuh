// Maximum of a row and sum of exp(x - maximum), gathered by thread, warp, block and cluster.
//
// Specials: -inf contributes nothing, and a row of nothing else has sum 0. NaN and +inf make the sum NaN: NaN by
// itself, +inf through (+inf) - (+inf). A NaN scale does too. No element needs a test of its own for this.
#pragma once

#include "warploom/cluster_async.cuh"
#include "warploom/reduce.cuh"
#include "warploom/sampling/row.cuh"

namespace warploom::sampling {

constexpr float kSmallestNormal = 1.17549435e-38f;
constexpr float kLargestFinite = 3.40282347e+38f;

// log2(e) / temperature, clamped to normal numbers so that 0 and infinity act as their limits; NaN for a bad one.
WL_DEVICE float exponent_scale(float temperature) {
  if (!(temperature >= 0)) return quiet_nan();
  const float inverse = fminf(fmaxf(1.0f / fabsf(temperature), kSmallestNormal), kLargestFinite);
  return fminf(inverse * kLog2e, kLargestFinite);
}

struct SoftmaxStats {
  float maximum;
  float sum;

  WL_DEVICE static SoftmaxStats none() { return {negative_infinity(), 0.0f}; }

  // What to subtract before the exponential: a row of -inf must not compute (-inf) - (-inf).
  WL_DEVICE float shift() const { return maximum == negative_infinity() ? 0.0f : maximum; }

  WL_DEVICE void raise_maximum(float to, float scale) {
    const float before = maximum;
    maximum = fmaxf(maximum, to);
    sum *= exp2_approx((before - shift()) * scale);
  }
};

// Adds vectors of elements T that are already in registers, and one element more.
template <class T, int kCount>
WL_DEVICE void accumulate(SoftmaxStats& stats, const Packed (&vectors)[kCount], float single, float scale) {
  stats.raise_maximum(fmaxf(max_element<T>(vectors), single), scale);
  const float shift = stats.shift();
  stats.sum += exp2_approx((single - shift) * scale);
#pragma unroll
  for (const Packed& packed : vectors) {
    float x[kVecWidth<T>];
    unpack<T>(packed, x);
#pragma unroll
    for (float value : x) stats.sum += exp2_approx((value - shift) * scale);
  }
}

// Every lane gets the stats of all lanes.
WL_DEVICE SoftmaxStats reduce_lanes(SoftmaxStats stats, float scale) {
  stats.raise_maximum(warp_reduce(stats.maximum, Max()), scale);
  stats.sum = warp_reduce(stats.sum, Sum());
  return stats;
}

// Shared memory of a reduction over all blocks of a row.
struct SoftmaxExchange {
  static constexpr int kMaxParts = 16;
  SoftmaxStats warps[kWarpSize];
  alignas(8) SoftmaxStats parts[kMaxParts];
  uint64_t arrived;  // mbarrier that counts the bytes of `parts`

  // At the start of the kernel, by all threads: the other blocks may send once they have seen this.
  WL_DEVICE void open(int parts_of_row) {
#if __CUDA_ARCH__ >= 900
    if (parts_of_row == 1) return;
    if (threadIdx.x == 0) {
      mbarrier_init(&arrived, 1);
      fence_barrier_init();
      mbarrier_expect_bytes(&arrived, parts_of_row * int(sizeof(SoftmaxStats)));
    }
    cluster_arrive_relaxed();
#endif
  }
};

WL_DEVICE SoftmaxStats reduce_block(SoftmaxStats stats, float scale, SoftmaxExchange& exchange) {
  stats = reduce_lanes(stats, scale);
  if (lane_id() == 0) exchange.warps[warp_id()] = stats;
  __syncthreads();
  const int warps = int(blockDim.x) / kWarpSize;
  return reduce_lanes(lane_id() < warps ? exchange.warps[lane_id()] : SoftmaxStats::none(), scale);
}

// Every thread of every block of the row gets the stats of the row: each block sends its own to all blocks, itself
// included. No block ends before it has heard from all others, so none sends to one that is gone.
WL_DEVICE SoftmaxStats reduce_row(SoftmaxStats stats, float scale, SoftmaxExchange& exchange, int part, int parts) {
  stats = reduce_block(stats, scale, exchange);
#if __CUDA_ARCH__ >= 900
  if (parts > 1) {
    cluster_wait();
    if (int(threadIdx.x) < parts) {
      const uint32_t slot = map_to_rank(&exchange.parts[part], threadIdx.x);
      send_async(slot, stats.maximum, stats.sum, map_to_rank(&exchange.arrived, threadIdx.x));
    }
    mbarrier_wait(&exchange.arrived, 0);
    stats = reduce_lanes(lane_id() < parts ? exchange.parts[lane_id()] : SoftmaxStats::none(), scale);
  }
#endif
  return stats;
}

}  // namespace warploom::sampling
