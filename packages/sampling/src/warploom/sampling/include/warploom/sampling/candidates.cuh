// The largest values of a row, found without a look at the others: for top-k with a k of some hundreds.
//
// Each thread knows the largest value of its own part. If r of a block's threads have one of at least b, the block has r
// tokens of at least b; with r = k / blocks and the smallest such b of all blocks, the row has k. For ordinary rows little
// more than k tokens lie above it, because every thread has its share of the whole vocabulary. Those are sent to the first
// block.
#pragma once

#include "warploom/sampling/mass.cuh"
#include "warploom/sampling/ordered.cuh"
#include "warploom/sampling/race.cuh"

namespace warploom::sampling {

struct CandidateStorage {
  static constexpr int kCapacity = 512;
  uint64_t keys[kCapacity];  // of the first block: a region for each block of the row
  int count;
};

constexpr int kTooMany = -1;

// Larger first; of equal values those with smaller tokens.
WL_DEVICE uint64_t candidate_key(float value, int token) {
  return uint64_t(ordered(value)) << 32 | (0xffffffffu - uint32_t(token));
}
WL_DEVICE float candidate_value(uint64_t key) { return from_ordered(uint32_t(key >> 32)); }
WL_DEVICE int candidate_token(uint64_t key) { return int(0xffffffffu - uint32_t(key)); }

struct RowMinimum {
  float value;

  WL_DEVICE static RowMinimum none() { return {-negative_infinity()}; }
  WL_DEVICE void merge(const RowMinimum& other) { value = fminf(value, other.value); }
};

// A value that at least `k` tokens of the row reach; -inf if that can't be said. For all threads of the row's blocks.
WL_DEVICE float reached_by(int k, float maximum, float largest_of_thread, RowReduce& reduce) {
  const int wanted = ceil_div(k, reduce.parts);
  const uint32_t key = ordered(largest_of_thread), lowest = ordered(negative_infinity());
  uint32_t below = ordered(maximum) + 1, bound = below;  // too few reach `below`
  int count = 0;
  // Down in growing steps until enough reach it, ...
#pragma unroll 1
  for (uint32_t step = 1u << 20; count < wanted && bound > lowest; step *= 2) {
    below = bound;
    bound = bound - lowest > step ? bound - step : lowest;
    count = __syncthreads_count(key >= bound);
  }
  // ... then in between, until not many more do.
#pragma unroll 1
  while (count > wanted + wanted / 4 + 1 && below - bound > 64) {
    const uint32_t middle = bound + (below - bound) / 2;
    const int reached = __syncthreads_count(key >= middle);
    if (reached >= wanted) {
      bound = middle, count = reached;
    } else {
      below = middle;
    }
  }
  return reduce(RowMinimum{count >= wanted ? from_ordered(bound) : negative_infinity()}).value;
}

// A value that no token outside the k largest reaches, or a lower one, for draws.
template <class Weights, int kThreads>
WL_DEVICE float lowest_candidate(int k, float maximum, float largest_of_thread, RowReduce& reduce) {
  const float lowest = Weights::kFromLogits ? -kLargestFinite : 0x1p-149f;  // that can be drawn
  return k <= kThreads * reduce.parts ? fmaxf(reached_by(k, maximum, largest_of_thread, reduce), lowest) : lowest;
}

// To the first block, whose barrier counts the bytes.
WL_DEVICE void send_candidate(uint64_t* slot, uint64_t key, uint64_t* arrived, int parts) {
#if __CUDA_ARCH__ >= 900
  if (parts > 1) {
    const float low = __uint_as_float(uint32_t(key)), high = __uint_as_float(uint32_t(key >> 32));
    return send_async(map_to_rank(slot, 0), low, high, map_to_rank(arrived, 0));
  }
#endif
  *slot = key;
}

// Puts the regions' keys together, `mine` of region number lane. By the first block, of which warps take regions in turn.
WL_DEVICE int gather_regions(const CandidateStorage& storage, int parts, int mine, uint64_t* keys) {
  const int region = CandidateStorage::kCapacity >> (__ffs(parts) - 1);
  const int before = warp_prefix_sum<RowReduceStorage::kMaxParts>(mine);  // keys of regions up to and with the lane's
  const int total = __shfl_sync(kFullMask, before, parts - 1);
  for (int part = warp_id(); part < parts; part += int(blockDim.x) / kWarpSize) {
    const int count = __shfl_sync(kFullMask, mine, part), start = __shfl_sync(kFullMask, before, part) - count;
    for (int i = lane_id(); i < count; i += kWarpSize) keys[start + i] = storage.keys[part * region + i];
  }
  __syncthreads();
  return total;
}

struct CandidateCount {
  int count;
  WL_DEVICE static CandidateCount none() { return {0}; }
};

// A thread's batches by their largest values.
template <class Weights, class Share>
WL_DEVICE Contest largest_batches(Share& share) {
  using T = typename Share::Element;
  Contest contest = Contest::none();
  share.visit_batches(true, [&](const Packed(&groups)[kBatch], int batch) {
    float largest = negative_infinity();
#pragma unroll
    for (const Packed& packed : groups) {
      float values[kVecWidth<T>];
      values_of<T>(packed, values, Weights::kFromLogits);
#pragma unroll
      for (float value : values) largest = max_or_nan(largest, value);
    }
    contest.enter(largest, batch);
  });
  return contest;
}

// Calls visitor(batch, is_sure) for the batches of a warp's threads that have values of at least `minimum`, and for few others: a
// thread's best, surely, or all of a thread with several, which the warp's lanes then share.
template <class Share, class Visitor>
WL_DEVICE void for_batches_above(const Share& share, const Contest& contest, float minimum, Visitor&& visitor) {
  const bool several = contest.second >= minimum;
  uint32_t left = __ballot_sync(kFullMask, several);
  int batch = contest.best >= minimum && !several ? contest.batch : -1;
  int thread = -1, number = 0, count = 0;  // the thread whose turn it is, and its batches
#pragma unroll 1
  for (;;) {
    if (batch >= 0) visitor(batch, thread < 0);
    __syncwarp();  // lanes that a branch has parted stay so, and take turns at all that follows
    number += kWarpSize;
    if (number >= count) {
      if (!left) return;
      thread = int(threadIdx.x) - lane_id() + __ffs(left) - 1;
      left &= left - 1;
      number = 0, count = share.batches_of(thread);
    }
    batch = number + lane_id() < count ? share.batch_of_thread(thread, number + lane_id()) : -1;
  }
}

// The row's tokens of at least `minimum`, in any order, for the first block, which gets their number; kTooMany for all blocks
// if they do not fit; 0 for the other blocks. `keys` may lie where the share was: nobody needs it then. `arrived` is an
// mbarrier for one arrival, used once.
template <class Weights, class Share>
WL_DEVICE int collect_candidates(Share& share, RowReduce& reduce, float minimum, const Contest& contest,
                                 CandidateStorage& storage, uint64_t* arrived, uint64_t* keys) {
  using T = typename Share::Element;
  constexpr int kWidth = kVecWidth<T>;
  const int region = CandidateStorage::kCapacity >> (__ffs(share.parts) - 1);
  if (threadIdx.x == 0) storage.count = 0;
  __syncthreads();
  for_batches_above(share, contest, minimum, [&](int batch, bool) {
    Packed groups[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) groups[i] = share.load(batch + i * kBatchStep<T>);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      float values[kWidth];
      values_of<T>(groups[i], values, Weights::kFromLogits);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        if (!(values[j] >= minimum)) continue;
        const int token = (batch + i * kBatchStep<T>) * kWidth + j;
        const int place = token < share.row.vocab ? atomicAdd(&storage.count, 1) : region;
        uint64_t* slot = &storage.keys[share.part * region + place];
        if (place < region) send_candidate(slot, candidate_key(values[j], token), arrived, share.parts);
      }
    }
  });
  __syncthreads();
  const int count = reduce.exchange(CandidateCount{storage.count}).count;
  const bool fits = __all_sync(kFullMask, count <= region);
  const int total = __reduce_add_sync(kFullMask, min(count, region));
#if __CUDA_ARCH__ >= 900
  if (share.parts > 1 && share.part == 0) {
    if (threadIdx.x == 0) mbarrier_expect_bytes(arrived, total * int(sizeof(uint64_t)));
    mbarrier_wait(arrived, 0);  // whatever becomes of them, nothing must come in later
  }
#endif
  if (fits) return share.part == 0 ? gather_regions(storage, share.parts, count, keys) : 0;
  __syncthreads();  // the storage is free for other uses
  return kTooMany;
}

}  // namespace warploom::sampling
