// The threshold of a filter, without sorting: the largest value such that the tokens at or above it amount to a target,
// by count (top-k) or by mass (top-p).
//
// A radix selection: the row's amounts are added up by the leading 9 bits of their ordered values, in a table in shared
// memory of each block; the tables of the row's blocks are added up; the digit where the running sum from the top
// reaches the target leads to the next 9 bits, and so on. Amounts are integers, so their sums do not depend on an order.
#pragma once

#include "warploom/sampling/ordered.cuh"
#include "warploom/sampling/candidates.cuh"

namespace warploom::sampling {

// Every token counts 1.
struct CountAmount {
  static constexpr bool kWide = false;
  WL_DEVICE uint64_t operator()(float) const { return 1; }
};

// Tokens count by their mass.
template <class Weights>
struct UnitAmount {
  static constexpr bool kWide = true;
  Weights weights;
  WL_DEVICE uint64_t operator()(float value) const { return weights.units(value); }
};

struct ThresholdStorage {
  static constexpr int kBins = 512;
  uint32_t low[kBins];
  uint32_t high[kBins];
  uint64_t warps[kWarpSize];
  uint64_t above;
  int bin;
};

struct Threshold {
  uint32_t key;    // ordered(value); 0 if all tokens together do not reach the target
  uint64_t above;  // amount of the tokens with larger values

  WL_DEVICE float value() const { return key ? from_ordered(key) : negative_infinity(); }
};

// Sums of every bin over the row's blocks; one object for each level.
template <bool kWide, int kThreads>
struct BinTable {
  static constexpr int kBins = ThresholdStorage::kBins;
  ThresholdStorage& storage;
  int run_bin;       // neighbouring tokens of one bin are added up first: rows of many equal values would queue for it
  uint64_t run_sum;

  WL_DEVICE explicit BinTable(ThresholdStorage& storage) : storage(storage), run_bin(-1), run_sum(0) {
    for (int bin = threadIdx.x; bin < kBins; bin += kThreads) {
      storage.low[bin] = 0;
      if (kWide) storage.high[bin] = 0;
    }
    __syncthreads();
  }

  WL_DEVICE void add(int bin, uint64_t amount) {
    if (bin != run_bin) flush();
    run_bin = bin;
    run_sum += amount;
  }

  // 64-bit sums as two atomic additions: shared memory has none of 64 bits.
  WL_DEVICE void flush() {
    if (run_sum == 0) return;
    const uint32_t low = uint32_t(run_sum);
    const uint32_t before = atomicAdd(&storage.low[run_bin], low);
    if (kWide) {
      const uint32_t high = uint32_t(run_sum >> 32) + (before + low < before ? 1 : 0);
      if (high) atomicAdd(&storage.high[run_bin], high);
    }
    run_sum = 0;
  }

  WL_DEVICE uint64_t sum_of_parts(int bin, int parts) const {
#if __CUDA_ARCH__ >= 900
    uint64_t sum = 0;
#pragma unroll 1
    for (int part = 0; part < parts; ++part) {
      sum += load_cluster_u32(map_to_rank(&storage.low[bin], part));
      if (kWide) sum += uint64_t(load_cluster_u32(map_to_rank(&storage.high[bin], part))) << 32;
    }
    return sum;
#else
    return storage.low[bin] + (kWide ? uint64_t(storage.high[bin]) << 32 : 0);
#endif
  }
};

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
#pragma unroll 1
  for (int warp = 0; warp < kThreads / kWarpSize; ++warp) base += warp < warp_id() ? warps[warp] : 0;
  return base + inclusive - value;
}

// The bin, counted from the top, where the sum so far reaches the target; -1 if none does. For all threads.
template <int kThreads, class Table, class Reached>
WL_DEVICE int reaching_bin(Table& table, int parts, uint64_t& above, Reached reached) {
  constexpr int kOwn = Table::kBins / kThreads;
  ThresholdStorage& storage = table.storage;
  uint64_t sums[kOwn];
  uint64_t own = 0;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    sums[i] = table.sum_of_parts(Table::kBins - 1 - (int(threadIdx.x) * kOwn + i), parts);
    own += sums[i];
  }
  if (threadIdx.x == 0) storage.bin = -1;
  uint64_t before = above + sum_before<kThreads>(own, storage.warps);  // has a barrier
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    if (!reached(before) && reached(before + sums[i])) {
      storage.bin = Table::kBins - 1 - (int(threadIdx.x) * kOwn + i);
      storage.above = before;
    }
    before += sums[i];
  }
  __syncthreads();
  if (storage.bin >= 0) above = storage.above;
  const int bin = storage.bin;
  sync_parts(parts);  // nobody clears a table, or leaves, while others read it
  return bin;
}

// All threads of all blocks of the row call this, after a first RowReduce. `reached(amount)` says whether an amount is the
// target or more; it is monotone, and false for 0. NaN is the largest value. Tokens below `minimum` are known not to matter.
template <class Weights, int kThreads, class Share, class Amount, class Reached>
WL_DEVICE Threshold find_threshold(Share& share, const Amount& amount, float minimum, Reached reached,
                                   ThresholdStorage& storage) {
  constexpr int kShifts[] = {23, 14, 5, 0};
  const uint32_t lowest = ordered(minimum);
  uint32_t key = 0;
  uint64_t above = 0;
#pragma unroll 1
  for (int level = 0; level < 4; ++level) {
    const int shift = kShifts[level];
    const uint32_t mask = level == 3 ? 31u : 511u;
    const uint32_t prefix_mask = level == 0 ? 0u : ~0u << kShifts[level - 1];
    BinTable<Amount::kWide, kThreads> table(storage);
    visit_values<Weights>(share, false, [&](float value) {
      const uint32_t candidate = ordered_with_nan(value);
      if (candidate >= lowest && (candidate & prefix_mask) == key) table.add(int(candidate >> shift & mask), amount(value));
    });
    table.flush();
    sync_parts(share.parts);
    const int bin = reaching_bin<kThreads>(table, share.parts, above, reached);
    if (bin < 0) return {0, above};
    key |= uint32_t(bin) << shift;
  }
  return {key, above};
}

}  // namespace warploom::sampling
