// Maximum of a row and sum of exp(x - maximum), gathered by thread, warp, block and cluster.
//
// Specials: -inf contributes nothing, and a row of nothing else has sum 0. NaN and +inf make the sum NaN: NaN by
// itself, +inf through (+inf) - (+inf). A NaN scale does too. No element needs a test of its own for this.
#pragma once

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

// Adds vectors of elements T that are already in registers.
template <class T, int kCount>
WL_DEVICE void accumulate(SoftmaxStats& stats, Packed (&vectors)[kCount], float scale) {
  stats.raise_maximum(max_element<T>(vectors), scale);
  const float shift = stats.shift();
#pragma unroll
  for (const Packed& packed : vectors) {
    float x[kVecWidth<T>];
    unpack<T>(packed, x);
#pragma unroll
    for (float value : x) stats.sum += exp2_approx((value - shift) * scale);
  }
  forget_unpacked(vectors);
}

// Every lane gets the stats of all lanes.
WL_DEVICE SoftmaxStats reduce_lanes(SoftmaxStats stats, float scale) {
  stats.raise_maximum(warp_reduce(stats.maximum, Max()), scale);
  stats.sum = warp_reduce(stats.sum, Sum());
  return stats;
}

// Shared memory of a reduction over all blocks of a row.
struct SoftmaxScratch {
  static constexpr int kMaxParts = 16;
  SoftmaxStats warps[kWarpSize];
  SoftmaxStats parts[kMaxParts];
};

WL_DEVICE SoftmaxStats reduce_block(SoftmaxStats stats, float scale, SoftmaxScratch& scratch) {
  stats = reduce_lanes(stats, scale);
  if (lane_id() == 0) scratch.warps[warp_id()] = stats;
  __syncthreads();
  const int warps = int(blockDim.x) / kWarpSize;
  return reduce_lanes(lane_id() < warps ? scratch.warps[lane_id()] : SoftmaxStats::none(), scale);
}

// Every thread of every block of the row gets the stats of the row. Each block writes its own to all the others, so that
// one barrier is enough. The caller has passed cluster_arrive() at the start of the kernel: shared memory of a block may
// be written only once the block runs.
WL_DEVICE SoftmaxStats reduce_row(SoftmaxStats stats, float scale, SoftmaxScratch& scratch, int part, int parts) {
  stats = reduce_block(stats, scale, scratch);
#if __CUDA_ARCH__ >= 900
  if (parts > 1) {
    cluster_wait();
    if (int(threadIdx.x) < parts) {
      store_cluster(map_to_rank(&scratch.parts[part].maximum, threadIdx.x), stats.maximum);
      store_cluster(map_to_rank(&scratch.parts[part].sum, threadIdx.x), stats.sum);
    }
    cluster_sync();
    stats = reduce_lanes(lane_id() < parts ? scratch.parts[lane_id()] : SoftmaxStats::none(), scale);
  }
#endif
  return stats;
}

}  // namespace warploom::sampling
