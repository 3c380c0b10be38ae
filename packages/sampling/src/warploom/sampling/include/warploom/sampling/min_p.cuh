// The threshold of min_p: the smallest value that weighs at least a share p of the largest.
#pragma once

#include "warploom/sampling/ordered.cuh"
#include "warploom/sampling/weights.cuh"

namespace warploom::sampling {

// p is above 0.
WL_DEVICE float min_p_threshold(const ProbWeights&, float maximum, float p) { return maximum * fminf(p, 1.0f); }

// By bisection over the numbers in their order: weights grow with values. 32 lanes divide the range, in seven steps. Not
// inline, so that its float64 numbers take no registers from what is around it.
__device__ __noinline__ float min_p_threshold(LogitWeights weights, float maximum, float p) {
  const double target = double(fminf(p, 1.0f));
  uint64_t low = ordered(negative_infinity()), high = ordered(maximum);  // `high` weighs enough, `low` does not
  while (high - low > 1) {
    const uint64_t probe = low + (high - low) * uint64_t(lane_id() + 1) / (kWarpSize + 1);
    const bool enough = probe > low && weights.exact(from_ordered(uint32_t(probe))) >= target;
    const uint32_t lanes = __ballot_sync(kFullMask, enough);
    const int first = lanes ? __ffs(lanes) - 1 : kWarpSize;
    const uint64_t below = __shfl_sync(kFullMask, probe, max(first - 1, 0));
    const uint64_t at = __shfl_sync(kFullMask, probe, min(first, kWarpSize - 1));
    if (first > 0) low = max(low, below);
    if (first < kWarpSize) high = at;
  }
  return from_ordered(uint32_t(high));
}

}  // namespace warploom::sampling
