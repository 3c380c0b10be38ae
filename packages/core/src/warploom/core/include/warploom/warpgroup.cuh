// Four warps that multiply together (sm_90a).
#pragma once

#include "warploom/common.cuh"

namespace warploom {

struct Warpgroup {
  static constexpr int kWarps = 4;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kRows = 64;  // of a product

  WL_DEVICE static int number() { return int(threadIdx.x / kThreads); }
  WL_DEVICE static int thread() { return int(threadIdx.x % kThreads); }
  WL_DEVICE static int warp() { return int(threadIdx.x / kWarpSize % kWarps); }
};

}  // namespace warploom
