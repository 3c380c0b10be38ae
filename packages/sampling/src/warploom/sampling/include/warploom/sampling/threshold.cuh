// The threshold of a filter, without sorting: the largest value such that the tokens at or above it amount to a target,
// by count (top-k) or by mass (top-p).
//
// First an estimate: tokens are counted by value, 64 bins for each power of two, in a table in shared memory of each block,
// and the sums over the row's blocks lead to the few bins between which the target lies. Then exactly: what lies above them is
// added up, and what lies in them by finer and finer bins, until a bin has one value. Exact amounts are integers, so their
// sums do not depend on an order. Should the estimate be wrong, the exact search starts again with all values.
#pragma once

#include "warploom/sampling/mass.cuh"

namespace warploom::sampling {

// What tokens amount to: 1 each, or their units.
template <class Weights>
struct Amount {
  Weights weights;
  bool counts;

  WL_DEVICE uint64_t exact(float value) const { return counts ? 1 : weights.units(value); }
  // Of many tokens of about a value.
  WL_DEVICE uint64_t rough(uint32_t tokens, float value) const {
    return uint64_t(float(tokens) * weights.approximate(value) * float(weights.unit_scale()));
  }
};

// Where the target lies: bins [begin, end), the amount above them and in the first.
struct Crossing {
  int begin;
  int end;
  uint64_t above;
  uint64_t at;

  WL_DEVICE static Crossing none() { return {-1, -1, 0, 0}; }

  // The one that a lane of the warp has found; begin and end may be of different lanes.
  WL_DEVICE Crossing of_warp() const {
    const uint32_t begins = __ballot_sync(kFullMask, begin >= 0), ends = __ballot_sync(kFullMask, end >= 0);
    const int lane = max(__ffs(begins) - 1, 0);
    const int last = __shfl_sync(kFullMask, end, max(__ffs(ends) - 1, 0));
    return {__shfl_sync(kFullMask, begin, lane), last, __shfl_sync(kFullMask, above, lane), __shfl_sync(kFullMask, at, lane)};
  }
};

struct ThresholdStorage {
  static constexpr int kBins = 512;
  static constexpr int kRoughBins = 2 * kBins;
  static constexpr int kListed = 512;
  union {
    uint32_t rough[kRoughBins];
    uint32_t halves[2][kBins];  // low and high, of 64-bit sums
  };
  uint32_t list[kListed];  // offsets of the values in question, of which later levels need no more
  int listed;              // or more, and the list is not complete
  Crossing found;
  uint64_t above, total;
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

// Of the units of a few tokens, low and high halves.
struct HalfSums {
  uint32_t above[2];
  uint32_t total[2];
};

WL_DEVICE void sync_parts(int parts) {
#if __CUDA_ARCH__ >= 900
  if (parts > 1) return cluster_sync();
#endif
  __syncthreads();
}

WL_DEVICE void count_up(uint32_t* counter) {
  asm volatile("red.shared.add.u32 [%0], 1;" ::"r"(shared_address(counter)) : "memory");
}

// `reached(amount, total)` says whether an amount of a total is the target or more; it is monotone, and false for 0. NaN is
// the largest value; `top` is the key of the row's largest. Values below `base` do not count. All threads of all blocks of
// the row, after a first reduction.
template <class Weights, int kThreads, class Share, class Reached>
struct ThresholdSearch {
  using T = typename Share::Element;
  using Storage = ThresholdStorage;
  static constexpr int kRoughShift = 17;
  static constexpr float kRoughOfOctave = 64.0f;
  // Distance of neighbouring numbers of T among those of float32.
  static constexpr uint32_t kGrain = is_same_v<T, __nv_bfloat16> ? 1u << 16 : is_same_v<T, __half> ? 1u << 13 : 1u;

  Share& share;
  RowReduce& reduce;
  Storage& storage;
  Amount<Weights> amount;
  Reached reached;
  uint32_t top;
  uint32_t lowest;      // offset from the top of values that count
  bool counts_all;      // there are no others
  uint64_t above = 0;   // of values before the range that is searched
  uint64_t total = 0;

  WL_DEVICE ThresholdSearch(Share& share, RowReduce& reduce, Storage& storage, const Amount<Weights>& amount, uint32_t top,
                            float base, Reached reached)
      : share(share), reduce(reduce), storage(storage), amount(amount), reached(reached), top(top),
        lowest(top - min(top, Weights::key(Weights::value(base)))), counts_all(!(base > Weights::kNothing)) {}

  WL_DEVICE Threshold find() {
    uint32_t begin = 0, last = lowest;  // of the values in question, as offsets from the top
    bool exact = false, weighs = false, narrowed = false;  // `weighs`: what lies above and below the range is not known
    bool lists = true;  // the values in question are not listed
#pragma unroll 1
    for (;;) {
      clear(lists);
      if (!exact) {
        add_rough();
      } else if (lists) {
        add_exact(begin, last, weighs);
        lists = storage.listed > Storage::kListed;
      } else {
        add_listed(begin, last);
      }
      const Crossing found = cross(exact, weighs);
      if (!exact) {
        narrowed = narrow(found, begin, last);
        exact = true, weighs = !amount.counts;
        if (amount.counts) above = found.above;  // counts are exact
      } else if (found.begin >= 0) {
        const int shift = shift_of(last - begin);
        begin += uint32_t(found.begin) << shift;
        last = min(last, begin + ((1u << shift) - 1));
        above = found.above;
        if (shift == 0) return {top - begin, above, found.at};
        weighs = false;
      } else if (narrowed && weighs) {  // the estimate was wrong
        begin = 0, last = lowest, narrowed = false, lists = true;
      } else {
        return {0, 0, 0};
      }
    }
  }

 private:
  // Bins of 2**shift keys hold a span.
  WL_DEVICE static int shift_of(uint32_t span) { return max(0, 32 - __clz(span) - 9); }

  WL_DEVICE void clear(bool list) {
    for (int bin = threadIdx.x; bin < Storage::kRoughBins; bin += kThreads) storage.rough[bin] = 0;
    if (list && threadIdx.x == 0) storage.listed = 0;
    __syncthreads();
  }

  // Whether the rough bins are of weights, 64 for each power of two, rather than of values.
  WL_DEVICE bool bins_weights() const { return Weights::kFromLogits && !amount.counts; }
  // A weight's place among the bins, of logits.
  WL_DEVICE float rough_place(float value) const {
    const float scale = fminf(amount.weights.scale * kRoughOfOctave, kLargestFinite);
    return fminf((amount.weights.maximum - value) * scale, float(Storage::kRoughBins - 1));
  }
  WL_DEVICE int rough_bin(float value) const {
    if constexpr (Weights::kFromLogits) {
      if (bins_weights()) return int(__float_as_uint(__fadd_rd(rough_place(value), 0x1p23f)) & (Storage::kRoughBins - 1));
    }
    return int(min((top - Weights::key(value)) >> kRoughShift, uint32_t(Storage::kRoughBins - 1)));
  }
  // Offset of the largest value of a bin, or of a larger one.
  WL_DEVICE uint32_t offset_of(int bin) const {
    if constexpr (Weights::kFromLogits) {
      if (bins_weights()) {
        const float below = (float(bin) - 0x1p-6f) / (amount.weights.scale * kRoughOfOctave);
        return bin == 0 ? 0 : top - Weights::key(fminf(amount.weights.maximum - below, amount.weights.maximum));
      }
    }
    return uint32_t(bin) << kRoughShift;
  }

  // To the bins of the rough table between which the target lies. False if that can't be said.
  WL_DEVICE bool narrow(const Crossing& found, uint32_t& begin, uint32_t& last) const {
    if (found.begin < 0) return false;
    begin = min(offset_of(found.begin), last);
    if (found.end > found.begin && found.end < Storage::kRoughBins) last = max(begin, min(last, offset_of(found.end)));
    return true;
  }

  WL_DEVICE void add_rough() {
    float mass = 0.0f;  // the bins do not tell of the last one's, which may hold most tokens
    const auto add = [&](float value) {
      mass += amount.weights.approximate(value);
      count_up(&storage.rough[rough_bin(value)]);
    };
    if (counts_all) {
      visit_values<Weights>(share, add);
    } else {
      visit_hits<Weights>(
          share, [&](float value) { return top - Weights::key(value) <= lowest; }, [&](float value, int) { add(value); });
    }
    const MassSums sums = warp_merge(reduce.of_warps(MassSums{0.0f, warp_reduce(mass, Sum())}));
    total = uint64_t(sums.total * float(amount.weights.unit_scale()));  // of the block; `cross` adds up the row's
  }

  // One digit of the values in [begin, last], of which there are few; if it `weighs`, the units before them and in all, too.
  WL_DEVICE void add_exact(uint32_t begin, uint32_t last, bool weighs) {
    if (weighs) {
      weigh(begin, last);
    } else {
      visit_hits<Weights>(
          share, [&](float value) { return top - Weights::key(value) - begin <= last - begin; },
          [&](float value, int) { list(value, begin, last); });
    }
    __syncthreads();
    add_listed(begin, last);
  }

  WL_DEVICE void list(float value, uint32_t begin, uint32_t last) {
    const uint32_t at = top - Weights::key(value);
    const int place = atomicAdd(&storage.listed, 1);
    if (place < Storage::kListed) {
      storage.list[place] = at;
    } else {
      add(at, begin, last - begin);
    }
  }

  WL_DEVICE void weigh(uint32_t begin, uint32_t last) {
    constexpr int kWidth = kVecWidth<T>, kSome = kTogether<T> / 2;  // registers are short
    const float high = from_ordered(top - begin), low = from_ordered(top - last);
    const float least = counts_all ? negative_infinity() : from_ordered(top - lowest);
    const UnitHalves halves(amount.weights);
    TableSums sums = TableSums::none();
    share.template visit_groups<kSome>(false, [&](const Packed(&groups)[kSome], int first) {
      uint32_t hits = 0;
      HalfSums some = {};
#pragma unroll
      for (int i = 0; i < kSome; ++i) {
        float values[kWidth];
        numbers_of<T, Weights>(groups[i], values);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          const float value = values[j];
          weigh_one(value, value > high, value >= least, halves, some, sums);
          hits |= uint32_t(value <= high && value >= low) << (i * kWidth + j);
        }
      }
      sums.above += some.above[0] + (uint64_t(some.above[1]) << kUnitBits / 2);
      sums.total += some.total[0] + (uint64_t(some.total[1]) << kUnitBits / 2);
#pragma unroll 1
      for (; hits; hits &= hits - 1) {
        const int n = __ffs(hits) - 1, group = first + n / kWidth * kBatchStep<T>;
        if (group * kWidth + n % kWidth < share.row.vocab) {
          list(Weights::value(to_float(share.token(group, n % kWidth))), begin, last);
        }
      }
    });
    sums = warp_merge_fast(reduce.of_warps(warp_merge_fast(sums)));
    above = sums.above, total = sums.total;  // of the block; `cross` adds up the row's
  }

  WL_DEVICE void weigh_one(float value, bool is_above, bool is_counted, const UnitHalves& halves, HalfSums& some,
                           TableSums& sums) const {
    if constexpr (Weights::kFromLogits) {
      const uint64_t units = amount.weights.units(value);
      sums.above += is_above ? units : 0;
      sums.total += is_counted ? units : 0;
    } else {
      uint32_t high, low;
      halves(value, high, low);
      if (is_above) some.above[0] += low, some.above[1] += high;
      if (is_counted) some.total[0] += low, some.total[1] += high;
    }
  }

  WL_DEVICE void add_listed(uint32_t begin, uint32_t last) {
    const int listed = min(storage.listed, Storage::kListed);
    for (int i = threadIdx.x; i < listed; i += kThreads) {
      const uint32_t at = storage.list[i];
      if (at - begin <= last - begin) add(at, begin, last - begin);
    }
  }

  WL_DEVICE void add(uint32_t at, uint32_t begin, uint32_t span) {
    add(int((at - begin) >> shift_of(span)), amount.exact(from_ordered(top - at)));
  }

  // 64-bit sums as two atomic additions: shared memory has none of 64 bits.
  WL_DEVICE void add(int bin, uint64_t units) {
    const uint32_t low = uint32_t(units), high = uint32_t(units >> 32);
    const uint32_t carry = low && atomicAdd(&storage.halves[0][bin], low) > ~low;
    if (high + carry) atomicAdd(&storage.halves[1][bin], high + carry);
  }

  // A block's own bins once `add_tables` is done.
  WL_DEVICE uint64_t sum(int bin, bool exact) const {
    if (exact) return storage.halves[0][bin] | uint64_t(storage.halves[1][bin]) << 32;
    if (amount.counts) return storage.rough[bin];
    return amount.rough(storage.rough[bin], middle_of(bin));
  }

  // A value that weighs what the tokens of a rough bin do on the average.
  WL_DEVICE float middle_of(int bin) const {
    if constexpr (Weights::kFromLogits) {
      return amount.weights.maximum - (float(bin) + 0.5f) / (amount.weights.scale * kRoughOfOctave);
    }
    const uint32_t middle = (uint32_t(bin) << kRoughShift) + ((1u << kRoughShift) - kGrain) / 2;
    return from_ordered(top - min(middle, lowest));
  }

#if __CUDA_ARCH__ >= 900
  WL_DEVICE uint64_t sum_of_parts(const uint32_t* word) const {
    uint64_t sum = 0;
#pragma unroll 8
    for (int part = 0; part < share.parts; ++part) sum += load_cluster_u32(map_to_rank(word, part));
    return sum;
  }
#endif

  // Blocks divide the bins: each adds up its own over all tables.
  WL_DEVICE void add_tables(int begin, int end, bool exact) {
#if __CUDA_ARCH__ >= 900
    if (share.parts == 1) return;
    for (int bin = begin + int(threadIdx.x); bin < end; bin += kThreads) {
      const uint64_t low = sum_of_parts(&storage.rough[bin]), high = exact ? sum_of_parts(&storage.halves[1][bin]) : 0;
      storage.rough[bin] = uint32_t(low);
      if (exact) storage.halves[1][bin] = uint32_t(high + (low >> 32));
    }
    __syncthreads();
#endif
  }

  // The amount of a bin, times that of one of its tokens as a share of the largest possible.
  WL_DEVICE uint64_t square(int bin) const {
    const uint32_t tokens = storage.rough[bin];
    const uint64_t all = sum(bin, false);
    // Tokens of 16-bit logits err together: a bin has few values.
    const float apart = Weights::kFromLogits && sizeof(T) == 2 ? 1.0f : float(tokens);
    return tokens ? uint64_t(float(all) * (float(all) * 0x1p-42f / apart)) : 0;
  }
  // Tokens are anywhere in their bins, of 1/64 at most: their errors add up as their squares do. Four standard deviations.
  WL_DEVICE uint64_t rough_error(uint64_t squares) const {
    return amount.counts ? 0 : (total >> 14) + uint64_t(0.018f * sqrtf(float(squares) * 0x1p42f));
  }

  // Where the target lies in the tables of the row's blocks.
  WL_DEVICE Crossing cross(bool exact, bool weighs) {
    sync_parts(share.parts);
    const int slice = (exact ? Storage::kBins : Storage::kRoughBins) >> (__ffs(share.parts) - 1);
    add_tables(share.part * slice, (share.part + 1) * slice, exact);
    if (warp_id() == 0) {
      const Crossing found = cross_slice(slice, exact, weighs);
      if (lane_id() == 0) storage.found = found, storage.above = above, storage.total = total;
    } else {
      reduce.round += 2;  // exchanges of the first warp
    }
    __syncthreads();
    above = storage.above, total = storage.total;
    return storage.found;
  }

  // By one warp of each block.
  WL_DEVICE Crossing cross_slice(int slice, bool exact, bool weighs) {
    const int own = slice / kWarpSize, first = share.part * slice + lane_id() * own;
    uint64_t mine = 0, squares = 0;
    for (int bin = first; bin < first + own; ++bin) {
      mine += sum(bin, exact);
      if (!exact && !amount.counts) squares += square(bin);
    }
    uint64_t before = mine;  // of this block's bins up to and with the lane's
#pragma unroll
    for (int offset = 1; offset < kWarpSize; offset *= 2) {
      const uint64_t other = __shfl_up_sync(kFullMask, before, offset);
      if (lane_id() >= offset) before += other;
    }
    const uint64_t bins = __shfl_sync(kFullMask, before, kWarpSize - 1);
    if (!exact) above = warp_reduce(squares, Sum());
    const TableSums blocks = reduce.exchange(TableSums{bins, above, total});
    before += warp_reduce(lane_id() < share.part ? blocks.bins : 0, Sum()) - mine;
    if (weighs || !exact) above = warp_reduce(blocks.above, Sum()), total = warp_reduce(blocks.total, Sum());
    const uint64_t slack = exact ? 0 : rough_error(above);
    if (!exact) above = 0;
    before += above;
    Crossing found = Crossing::none();
    for (int bin = first; bin < first + own; ++bin) {
      const uint64_t here = sum(bin, exact);
      exact ? cross_exact(found, bin, before, here) : cross_rough(found, bin, before, here, slack);
      before += here;
    }
    __syncwarp();
    return reduce.exchange(found.of_warp()).of_warp();
  }

  WL_DEVICE void cross_exact(Crossing& found, int bin, uint64_t before, uint64_t here) const {
    if (reached(double(before), double(total)) || !reached(double(before + here), double(total))) return;
    found = {bin, bin + 1, before, here};
  }

  WL_DEVICE void cross_rough(Crossing& found, int bin, uint64_t before, uint64_t here, uint64_t slack) const {
    const double all = double(total);
    if (!reached(double(before + slack), all) && reached(double(before + here + slack), all)) {
      found.begin = bin, found.above = before;
    }
    if (!reached(double(before), all + double(slack)) && reached(double(before + here), all + double(slack))) {
      found.end = bin + 1;
    }
  }
};

template <class Weights, int kThreads, class Share, class Reached>
WL_DEVICE Threshold find_threshold(Share& share, RowReduce& reduce, ThresholdStorage& storage, const Amount<Weights>& amount,
                                   uint32_t top, float base, Reached reached) {
  return ThresholdSearch<Weights, kThreads, Share, Reached>(share, reduce, storage, amount, top, base, reached).find();
}

}  // namespace warploom::sampling
