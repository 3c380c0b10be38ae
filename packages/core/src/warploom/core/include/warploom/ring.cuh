// Stages of shared memory that some warps or the copy engine fill, in turn, and others read (sm_90).
#pragma once

#include "warploom/mbarrier.cuh"

namespace warploom {

#if __CUDA_ARCH__ >= 900

// A place in a ring of stages that goes round: `at` tells also whether the round is odd, which the barriers' phases go by.
template <int kStages>
struct RingPlace {
  int at = 0;

  WL_DEVICE int stage() const { return at < kStages ? at : at - kStages; }
  WL_DEVICE uint32_t parity() const { return at < kStages ? 0 : 1; }
  WL_DEVICE RingPlace before() const { return {at == 0 ? 2 * kStages - 1 : at - 1}; }
  WL_DEVICE void next() { at = at == 2 * kStages - 1 ? 0 : at + 1; }
};

// Stages that are filled by some warps and read by others.
template <int kStages>
struct Ring {
  using Place = RingPlace<kStages>;

  uint64_t full[kStages], free[kStages];

  WL_DEVICE void open(int fillers, int readers) {
    for (int stage = 0; stage < kStages; ++stage) mbarrier_init(&full[stage], fillers), mbarrier_init(&free[stage], readers);
  }
  WL_DEVICE void wait_free(const Place& place) { mbarrier_wait(&free[place.stage()], place.parity() ^ 1); }
  // What threads write, also by cp.async, the tensor cores see only after a fence.
  WL_DEVICE void wait_full(const Place& place, bool by_threads) {
    mbarrier_wait(&full[place.stage()], place.parity());
    if (by_threads) fence_async_proxy();
  }
  // By a warp, all lanes of which have read what they need.
  WL_DEVICE void release(const Place& place) {
    __syncwarp();
    if (lane_id() == 0) mbarrier_arrive(&free[place.stage()]);
  }
  // By a thread, of what all threads read: racecheck follows only their own arrivals.
  WL_DEVICE void release_by_thread(const Place& place) { mbarrier_arrive(&free[place.stage()]); }
};

#endif

}  // namespace warploom
