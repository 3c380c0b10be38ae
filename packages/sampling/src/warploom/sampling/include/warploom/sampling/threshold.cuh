// The threshold of a filter, without sorting: the largest value such that the tokens at or above it amount to a target,
// by count (top-k) or by mass (top-p).
//
// First an estimate: rough amounts are added up by value, 64 bins for each power of two, in a table in shared memory of each
// block, and the sums lead to the few bins between which the target lies. Then exactly: everything above them is added up,
// and what lies in them by finer and finer bins, until a bin has one value. Exact amounts are integers, so their sums do not
// depend on an order. Should the estimate be wrong, the exact search starts with all values.
#pragma once

#include "warploom/sampling/mass.cuh"

namespace warploom::sampling {

// What tokens amount to: 1 each, or their units.
template <class Weights>
struct Amount {
  Weights weights;
  bool counts;

  WL_DEVICE uint64_t exact(float value) const { return counts ? 1 : weights.units(value); }
  // In steps of which the largest has so many that those of `tokens` fit 32 bits. One token more or less than half a step.
  WL_DEVICE float rough_scale(int tokens) const {
    const int bits = min(17, __clz(tokens) - 1) - kUnitBits;
    return counts ? 1.0f : float(fmin(weights.unit_scale() * ldexp(1.0, bits), 0x1p126));
  }
  WL_DEVICE float rough(float value) const { return counts ? 1.0f : weights.approximate(value); }
};

struct ThresholdStorage {
  static constexpr int kBins = 512;
  static constexpr int kRoughBins = 2 * kBins;
  union {
    uint32_t rough[kRoughBins];
    uint32_t halves[2][kBins];  // low and high, of 64-bit sums
  };
  uint64_t warps[kWarpSize];
};

struct Threshold {
  uint32_t key;    // `Weights::key` of the value; 0 if all tokens together do not reach the target
  uint64_t above;  // amount of the tokens with larger values
  uint64_t at;     // and of those with this one

  WL_DEVICE float value() const { return key ? from_ordered(key) : negative_infinity(); }
};

// What blocks tell each other of a table: sums of the bins that each has added up, of values above all bins, and in all.
struct TableSums {
  uint64_t bins;
  uint64_t above;
  uint64_t total;

  WL_DEVICE static TableSums none() { return {0, 0, 0}; }
  WL_DEVICE void merge(const TableSums& other) { bins += other.bins, above += other.above, total += other.total; }
};

// Where the target lies: bins [begin, end), the amount above them and in the first.
struct Crossing {
  int begin;
  int end;
  uint64_t above;
  uint64_t at;

  WL_DEVICE static Crossing none() { return {-1, -1, 0, 0}; }
  WL_DEVICE void merge(const Crossing& other) {
    if (other.begin >= 0) begin = other.begin, above = other.above, at = other.at;
    end = max(end, other.end);
  }
};

WL_DEVICE void sync_parts(int parts) {
#if __CUDA_ARCH__ >= 900
  if (parts > 1) return cluster_sync();
#endif
  __syncthreads();
}

// `reached(amount, total)` says whether an amount of a total is the target or more; it is monotone, and false for 0. NaN is
// the largest value; `top` is the key of the row's largest. Values below `base` do not count. All threads of all blocks of
// the row, after a first reduction.
template <class Weights, int kThreads, class Share, class Reached>
struct ThresholdSearch {
  using Storage = ThresholdStorage;
  static constexpr int kRoughShift = 17;

  Share& share;
  RowReduce& reduce;
  Storage& storage;
  Amount<Weights> amount;
  Reached reached;
  uint32_t top;
  uint32_t lowest;      // offset from the top of values that count
  uint64_t above = 0;   // of values before the range that is searched
  uint64_t total = 0;

  WL_DEVICE ThresholdSearch(Share& share, RowReduce& reduce, Storage& storage, const Amount<Weights>& amount, uint32_t top,
                            float base, Reached reached)
      : share(share), reduce(reduce), storage(storage), amount(amount), reached(reached), top(top),
        lowest(top - min(top, Weights::key(Weights::value(base)))) {}

  WL_DEVICE Threshold find() {
    uint32_t begin = 0, last = lowest;  // of the values in question, as offsets from the top
    bool exact = false, first = true, narrowed = false;
#pragma unroll 1
    for (;;) {
      clear();
      const Crossing found = exact ? cross(add_exact(begin, last, first), true) : cross(add_rough(), false);
      if (!exact) {
        narrowed = narrow(found, begin, last);
        exact = true;
      } else if (found.begin >= 0) {
        const int shift = shift_of(last - begin);
        begin += uint32_t(found.begin) << shift;
        last = min(last, begin + ((1u << shift) - 1));
        above = found.above;
        if (shift == 0) return {top - begin, above, found.at};
        first = false;
      } else if (narrowed) {  // the estimate was wrong
        begin = 0, last = lowest, narrowed = false;
      } else {
        return {0, 0, 0};
      }
      if (first) above = total = 0;
    }
  }

 private:
  // Bins of 2**shift keys hold a span.
  WL_DEVICE static int shift_of(uint32_t span) { return max(0, 32 - __clz(span) - 9); }

  WL_DEVICE void clear() {
    for (int bin = threadIdx.x; bin < Storage::kRoughBins; bin += kThreads) storage.rough[bin] = 0;
    __syncthreads();
  }

  // To the bins of the rough table between which the target lies. False if that can't be said.
  WL_DEVICE bool narrow(const Crossing& found, uint32_t& begin, uint32_t& last) const {
    if (found.begin < 0) return false;
    begin = uint32_t(found.begin) << kRoughShift;
    if (found.end > found.begin && found.end < Storage::kRoughBins) last = min(last, (uint32_t(found.end) << kRoughShift) - 1);
    return true;
  }

  // Steps of a rough sum in the largest amount.
  WL_DEVICE float scale() const { return amount.rough_scale(share.count * kVecWidth<typename Share::Element>); }

  WL_DEVICE TableSums add_rough() {
    const float scale = this->scale();
    float mass = 0.0f;
    visit_values_fast<Weights>(share, false, [&](float value) {
      const uint32_t at = top - Weights::key(value);
      if (at > lowest) return;
      const float rough = amount.rough(value);
      mass += rough;
      const uint32_t steps = __float_as_uint(fmaf(rough, scale, 0x1p23f)) & 0x7fffffu;
      atomicAdd(&storage.rough[min(at >> kRoughShift, uint32_t(Storage::kRoughBins - 1))], steps);
    });
    return {0, 0, uint64_t(mass * scale) >> dropped(false)};
  }

  // One digit of the values in [begin, last]; `first`: what lies above and below them is not known yet.
  WL_DEVICE TableSums add_exact(uint32_t begin, uint32_t last, bool first) {
    const uint32_t span = last - begin;
    const int shift = shift_of(span);
    TableSums sums = TableSums::none();
    visit_values<Weights>(share, false, [&](float value) {
      const uint32_t at = top - Weights::key(value);
      const bool inside = at - begin <= span;
      if (at > lowest || !(inside || first)) return;
      const uint64_t units = amount.exact(value);
      sums.total += first ? units : 0;
      if (inside) {
        add(int((at - begin) >> shift), units);
      } else if (at < begin) {
        sums.above += units;
      }
    });
    return sums;
  }

  // 64-bit sums as two atomic additions: shared memory has none of 64 bits.
  WL_DEVICE void add(int bin, uint64_t units) {
    const uint32_t low = uint32_t(units), high = uint32_t(units >> 32);
    const uint32_t carry = low && atomicAdd(&storage.halves[0][bin], low) > ~low;
    if (high + carry) atomicAdd(&storage.halves[1][bin], high + carry);
  }

  WL_DEVICE uint64_t sum(int bin, bool exact) const {
    return exact ? storage.halves[0][bin] | uint64_t(storage.halves[1][bin]) << 32 : storage.rough[bin];
  }

  // Bits that rough sums lose, so that those of sixteen blocks fit.
  WL_DEVICE int dropped(bool exact) const { return exact || amount.counts ? 0 : 4; }

  // Blocks divide the bins: each adds up its own over all tables.
  WL_DEVICE void add_tables(int begin, int end, bool exact) {
    for (int bin = begin + int(threadIdx.x); bin < end; bin += kThreads) {
      uint64_t all = 0;
#if __CUDA_ARCH__ >= 900
#pragma unroll 4
      for (int part = 0; part < share.parts; ++part) {
        all += load_cluster_u32(map_to_rank(&storage.rough[bin], part));
        if (exact) all += uint64_t(load_cluster_u32(map_to_rank(&storage.halves[1][bin], part))) << 32;
      }
#else
      all = sum(bin, exact);
#endif
      storage.rough[bin] = uint32_t(all >> dropped(exact));
      if (exact) storage.halves[1][bin] = uint32_t(all >> 32);
    }
    __syncthreads();
  }

  // Where the target lies in the tables of the row's blocks, whose threads have each added up `sums`.
  WL_DEVICE Crossing cross(TableSums sums, bool exact) {
    sums = warp_merge(reduce.of_warps(warp_merge(sums)));
    sync_parts(share.parts);
    const int slice = (exact ? Storage::kBins : Storage::kRoughBins) >> (__ffs(share.parts) - 1);
    const int begin = share.part * slice, own = max(slice / kThreads, 1);
    add_tables(begin, begin + slice, exact);
    const int first = begin + min(int(threadIdx.x) * own, slice), end = begin + min(int(threadIdx.x + 1) * own, slice);
    uint64_t mine = 0;
    for (int bin = first; bin < end; ++bin) mine += sum(bin, exact);
    uint64_t before = sum_before(mine, sums.bins);
    const TableSums blocks = reduce.exchange(sums);
    before += warp_reduce(lane_id() < share.part ? blocks.bins : 0, Sum());
    sums = warp_merge(blocks);
    above += sums.above, total += sums.total;
    before += above;
    Crossing found = Crossing::none();
    for (int bin = first; bin < end; ++bin) {
      const uint64_t here = sum(bin, exact);
      exact ? cross_exact(found, bin, before, here) : cross_rough(found, bin, before, here);
      before += here;
    }
    return warp_merge(reduce.exchange(warp_merge(reduce.of_warps(warp_merge(found)))));
  }

  WL_DEVICE void cross_exact(Crossing& found, int bin, uint64_t before, uint64_t here) const {
    if (reached(double(before), double(total)) || !reached(double(before + here), double(total))) return;
    found = {bin, bin + 1, before, here};
  }

  WL_DEVICE void cross_rough(Crossing& found, int bin, uint64_t before, uint64_t here) const {
    const bool counts = amount.counts;
    const float slack = counts ? 0.0f : this->slack(bin), next_slack = counts ? 0.0f : this->slack(bin + 1);
    const float most = (float(before) + float(counts ? 0 : bin)) * (1.0f + slack);
    const float next_most = (float(before + here) + float(counts ? 0 : bin + 1)) * (1.0f + next_slack);
    if (!reached(most, double(total)) && reached(next_most, double(total))) found.begin = bin;
    const float least = float(before) * (1.0f - slack), next_least = float(before + here) * (1.0f - next_slack);
    if (!reached(least, double(total)) && reached(next_least, double(total))) found.end = bin + 1;
  }

  // Error of a rough sum of values above a bin: half a step of each, which is at least the bin's edge, and of exponentials.
  WL_DEVICE float slack(int bin) const {
    const uint32_t edge = top - min(top - ordered(negative_infinity()), uint32_t(bin) << kRoughShift);
    return fminf(0.5f / (amount.rough(from_ordered(edge)) * scale()), 1.0f) + 1e-4f;
  }

  // Sum over the threads before this one, and over the block.
  WL_DEVICE uint64_t sum_before(uint64_t value, uint64_t& block) {
    uint64_t inclusive = value;
#pragma unroll
    for (int offset = 1; offset < kWarpSize; offset *= 2) {
      const uint64_t before = __shfl_up_sync(kFullMask, inclusive, offset);
      if (lane_id() >= offset) inclusive += before;
    }
    if (lane_id() == kWarpSize - 1) storage.warps[warp_id()] = inclusive;
    __syncthreads();
    uint64_t base = 0;
    block = 0;
#pragma unroll 1
    for (int warp = 0; warp < kThreads / kWarpSize; ++warp) {
      base += warp < warp_id() ? storage.warps[warp] : 0;
      block += storage.warps[warp];
    }
    return base + inclusive - value;
  }
};

template <class Weights, int kThreads, class Share, class Reached>
WL_DEVICE Threshold find_threshold(Share& share, RowReduce& reduce, ThresholdStorage& storage, const Amount<Weights>& amount,
                                   uint32_t top, float base, Reached reached) {
  return ThresholdSearch<Weights, kThreads, Share, Reached>(share, reduce, storage, amount, top, base, reached).find();
}

}  // namespace warploom::sampling
