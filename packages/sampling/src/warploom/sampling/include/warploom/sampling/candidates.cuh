// The largest values of a row, found without a look at the others: for top-k with a k of some hundreds.
//
// Each thread knows the largest value of its own part. If r of a block's threads have one of at least b, the block has r
// tokens of at least b; with r = k / blocks and the smallest such b of all blocks, the row has k. For ordinary rows little
// more than k tokens lie above it, because every thread has its share of the whole vocabulary. Those are sent to the first
// block, which sorts them.
#pragma once

#include "warploom/sampling/mass.cuh"
#include "warploom/sampling/ordered.cuh"

namespace warploom::sampling {

struct CandidateStorage {
  static constexpr int kCapacity = 512;
  uint64_t keys[kCapacity];  // of the first block: a region for each block of the row, then all in order
  int counts[RowReduceStorage::kMaxParts];
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
WL_DEVICE float reached_by(int k, float largest_of_thread, RowReduce& reduce) {
  const int wanted = ceil_div(k, reduce.parts);
  const uint32_t key = ordered(largest_of_thread);
  uint32_t bound = 0;
  // The upper 18 bits are close enough.
  for (uint32_t bit = 1u << 31; bit >= 1u << 14; bit >>= 1) {
    if (__syncthreads_count(key >= (bound | bit)) >= wanted) bound |= bit;
  }
  const uint32_t smallest = ordered(negative_infinity());
  return reduce(RowMinimum{from_ordered(max(bound, smallest))}).value;
}

WL_DEVICE void store_to_part(const void* pointer, int part, uint64_t value) {
#if __CUDA_ARCH__ >= 900
  store_cluster(map_to_rank(pointer, part), value);
#else
  *static_cast<uint64_t*>(const_cast<void*>(pointer)) = value;
#endif
}
WL_DEVICE void store_to_part(const void* pointer, int part, int value) {
#if __CUDA_ARCH__ >= 900
  store_cluster(map_to_rank(pointer, part), uint32_t(value));
#else
  *static_cast<int*>(const_cast<void*>(pointer)) = value;
#endif
}

WL_DEVICE void sync_parts(int parts) {
#if __CUDA_ARCH__ >= 900
  if (parts > 1) return cluster_sync();
#endif
  __syncthreads();
}

// Exclusive prefix sum over the threads of the block.
template <int kThreads>
WL_DEVICE uint64_t sum_before(uint64_t value, uint64_t* warps) {
  uint64_t inclusive = value;
#pragma unroll
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const uint64_t before = __shfl_up_sync(kFullMask, inclusive, offset);
    if (lane_id() >= offset) inclusive += before;
  }
  if (lane_id() == kWarpSize - 1) warps[warp_id()] = inclusive;
  __syncthreads();
  uint64_t base = 0;
  for (int warp = 0; warp < kThreads / kWarpSize; ++warp) base += warp < warp_id() ? warps[warp] : 0;
  return base + inclusive - value;
}

// Bitonic, descending, in shared memory; `size` is a power of two.
WL_DEVICE void sort_descending(uint64_t* keys, int size) {
  for (int length = 2; length <= size; length *= 2) {
    for (int distance = length / 2; distance > 0; distance /= 2) {
      for (int pair = threadIdx.x; pair < size / 2; pair += int(blockDim.x)) {
        const int low = 2 * pair - (pair & (distance - 1)), high = low + distance;
        const uint64_t a = keys[low], b = keys[high];
        if ((a < b) == ((low & length) == 0)) keys[low] = b, keys[high] = a;
      }
      __syncthreads();
    }
  }
}

// Moves the regions' keys together and sorts them. By the first block.
WL_DEVICE int sort_candidates(CandidateStorage& storage, int parts) {
  const int region = CandidateStorage::kCapacity / parts;
  int total = 0;
  for (int part = 0; part < parts; ++part) total += storage.counts[part];
  int size = 2;
  while (size < total) size *= 2;
  // In order of their places, each either kept where it is or moved to the front: by way of registers.
  constexpr int kOwn = CandidateStorage::kCapacity / 128;
  uint64_t own[kOwn];
  int places[kOwn];
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int at = int(threadIdx.x) + i * int(blockDim.x);
    places[i] = -1;
    if (at >= CandidateStorage::kCapacity) continue;
    const int part = at / region, index = at % region;
    if (part >= parts || index >= storage.counts[part]) continue;
    places[i] = index;
    for (int before = 0; before < part; ++before) places[i] += storage.counts[before];
    own[i] = storage.keys[at];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    if (places[i] >= 0) storage.keys[places[i]] = own[i];
  }
  for (int at = total + int(threadIdx.x); at < size; at += int(blockDim.x)) storage.keys[at] = 0;
  __syncthreads();
  sort_descending(storage.keys, size);
  return total;
}

// The row's tokens of at least `minimum`, in order, for the first block, which gets their number; kTooMany for all blocks if
// they do not fit; 0 for the other blocks. `largest_of_thread` spares threads that have none the search.
template <class Weights, class Share>
WL_DEVICE int collect_candidates(Share& share, float minimum, float largest_of_thread, CandidateStorage& storage) {
  using T = typename Share::Element;
  const int region = CandidateStorage::kCapacity / share.parts;
  if (threadIdx.x == 0) storage.count = 0;
  __syncthreads();
  if (largest_of_thread >= minimum) {
    share.template visit<false>([&](const Packed& packed, int group) {
      float values[kVecWidth<T>];
      values_of<T>(packed, values, Weights::kFromLogits);
#pragma unroll
      for (int i = 0; i < kVecWidth<T>; ++i) {
        const int token = group * kVecWidth<T> + i;
        if (!(values[i] >= minimum) || token >= share.row.vocab) continue;
        const int place = atomicAdd(&storage.count, 1);
        if (place >= region) continue;
        store_to_part(&storage.keys[share.part * region + place], 0, candidate_key(values[i], token));
      }
    });
  }
  __syncthreads();
  if (int(threadIdx.x) < share.parts) store_to_part(&storage.counts[share.part], threadIdx.x, storage.count);
  sync_parts(share.parts);
  bool fits = true;
  for (int part = 0; part < share.parts; ++part) fits = fits && storage.counts[part] <= region;
  if (fits) return share.part == 0 ? sort_candidates(storage, share.parts) : 0;
  __syncthreads();  // the storage is free for other uses
  return kTooMany;
}

}  // namespace warploom::sampling
