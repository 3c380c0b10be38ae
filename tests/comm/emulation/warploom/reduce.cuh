// Stands before core's header of this name: threads meet at the block's barrier.
#pragma once

#include "warploom/common.cuh"

namespace warploom {

struct Sum {
  float operator()(float a, float b) const { return a + b; }
};
struct MaxNan {
  float operator()(float a, float b) const { return a != a || b != b ? NAN : std::max(a, b); }
};

template <int kLanes, class Op>
float warp_reduce(float value, Op op) {
  block->lanes[threadIdx.x] = value;
  __syncthreads();
  const unsigned first = threadIdx.x / kLanes * kLanes;
  float result = block->lanes[first];
  for (int lane = 1; lane < kLanes; ++lane) result = op(result, block->lanes[first + lane]);
  __syncthreads();
  return result;
}

template <int kThreads, class Op>
float block_reduce(float value, Op op, float*) {
  return warp_reduce<kThreads>(value, op);
}

}  // namespace warploom
