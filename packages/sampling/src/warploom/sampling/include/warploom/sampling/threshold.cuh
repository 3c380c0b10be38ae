// The threshold of a filter, without sorting: the largest value such that the tokens at or above it amount to a target,
// by count (top-k) or by mass (top-p).
//
// First an estimate: tokens are counted in a table of each block, 96 bins for each power of two of the values, and the sums over
// the row's blocks lead to the few bins between which the target lies. Then exactly: what lies above them is added up, the few
// values in them go to all blocks, and each searches those by two finer digits. Exact amounts are integers, so their sums do not
// depend on an order. If the values are too many the digits are of all blocks' tables; if the estimate was wrong, of all values.
#pragma once

#include "warploom/sampling/mass.cuh"
#include "warploom/sampling/parts.cuh"
#include "warploom/sampling/table.cuh"

namespace warploom::sampling {

// What tokens amount to: 1 each, or their units.
template <class W>
struct Amount {
  using Weights = W;
  Weights weights;
  bool counts;

  WL_DEVICE uint64_t exact(float value) const { return counts ? 1 : weights.units(value); }
  // Of many tokens of about a value.
  WL_DEVICE uint64_t rough(uint32_t tokens, float value) const {
    return uint64_t(float(tokens) * weights.approximate(value) * float(weights.unit_scale()));
  }
};

// Always 1 each: a search with less code.
template <class W>
struct Count : Amount<W> {
  static constexpr bool counts = true;

  WL_DEVICE Count() : Amount<W>{W(0.0f, 0.0f), true} {}
  WL_DEVICE uint64_t exact(float) const { return 1; }
};

// Where the target lies: bins [begin, end), the amount above them and in the first; -1 where it does not.
struct Crossing {
  int begin;
  int end;
  uint64_t above;
  uint64_t at;
};

struct ThresholdStorage {
  TableStorage table;
  uint64_t warps[kWarpSize];    // amounts of the bins that each has
  uint64_t squares[kWarpSize];  // and `square`
  int listed;                   // values in question, of this block
  Crossing found;
};

struct Threshold {
  uint32_t key;    // `Weights::key` of the value; 0 if all tokens together do not reach the target
  uint64_t above;  // amount of the tokens with larger values
  uint64_t at;     // and of those with this one

  WL_DEVICE float value() const { return key ? from_ordered(key) : negative_infinity(); }
};

// What blocks tell each other: amounts above all values in question and in all, and how many these are.
struct BlockAmounts {
  uint64_t above;
  uint64_t total;
  int listed;
  int unused;

  WL_DEVICE static BlockAmounts none() { return {0, 0, 0, 0}; }
  WL_DEVICE void merge(const BlockAmounts& other) {
    above += other.above, total += other.total, listed += other.listed;
  }
};

WL_DEVICE void count_up(uint32_t* counter) {
  asm volatile("red.shared.add.u32 [%0], 1;" ::"r"(shared_address(counter)) : "memory");
}

// `reached(amount, total)` says whether an amount of a total is the target or more; it is monotone, and false for 0. NaN is
// the largest value; `top` is the key of the row's largest. Values below `base` do not count. All threads of all blocks of
// the row, after a first reduction.
template <class Amounts, int kThreads, class Share, class Reached>
struct ThresholdSearch {
  using Weights = typename Amounts::Weights;
  using T = typename Share::Element;
  using Table = TableStorage;
  static constexpr int kDigits = Table::kWords / 2;        // bins of a digit: two words each
  static constexpr uint32_t kBinsOfKey = 3u << 14;         // rough bins a key, times 2**32: 96 for 2**23 keys
  static constexpr float kRoughOfOctave = 96.0f;
  // Distance of neighbouring numbers of T among those of float32.
  static constexpr uint32_t kGrain = is_same_v<T, __nv_bfloat16> ? 1u << 16 : is_same_v<T, __half> ? 1u << 13 : 1u;

  Share& share;
  RowReduce& reduce;
  ThresholdStorage& storage;
  Amounts amount;
  Reached reached;
  uint32_t top;
  uint32_t lowest;      // offset from the top of values that count
  bool counts_all;      // there are no others
  uint64_t above = 0;   // of values before the range that is searched
  uint64_t total = 0;

  WL_DEVICE ThresholdSearch(Share& share, RowReduce& reduce, ThresholdStorage& storage, const Amounts& amount, uint32_t top,
                            float base, Reached reached)
      : share(share), reduce(reduce), storage(storage), amount(amount), reached(reached), top(top),
        lowest(top - min(top, Weights::key(Weights::value(base)))), counts_all(!(base > Weights::kNothing)) {}

  WL_DEVICE Threshold find() {
    uint32_t begin = 0, last = lowest;  // of the values in question, as offsets from the top
    bool narrowed = false, gathered = false;
    Stage stage = kEstimate;
    // One loop, because a pass is long.
#pragma unroll 1
    for (;;) {
      clear(stage != kGather);
      const BlockAmounts mine = pass(stage, begin, last, gathered);
      if (stage == kEstimate) {
        storage.table.start(1, share.part, share.parts);
        total = warp_merge(reduce.exchange(mine)).total;
        storage.table.finish(1, share.part, share.parts);
        const Crossing found = cross(false);
        narrowed = narrow(found, begin, last);
        if (amount.counts) above = found.above;  // counts are exact
        stage = kGather;
        continue;
      }
      if (stage == kGather) {
        gathered = gather(mine);
        stage = kDigit;
        continue;
      }
      if (!gathered) {
        storage.table.start(2, share.part, share.parts);
        storage.table.finish(2, share.part, share.parts);
      }
      const Crossing found = cross(true);
      if (found.begin >= 0) {
        const int shift = shift_of(last - begin);
        begin += uint32_t(found.begin) << shift;
        last = min(last, begin + ((1u << shift) - 1));
        above = found.above;
        if (shift == 0) return {top - begin, above, found.at};
      } else if (narrowed) {  // the estimate was wrong
        begin = 0, last = lowest, above = 0, narrowed = gathered = false;
        sync_parts(share.parts);  // nobody needs what has been gathered
      } else {
        return {0, 0, 0};
      }
    }
  }

 private:
  // Count in rough bins; weigh, and list what is in question; a digit of that.
  enum Stage { kEstimate, kGather, kDigit };

  // A pass over the block's values, or over what has been gathered: fills the table. What it comes to, if that counts.
  WL_DEVICE BlockAmounts pass(Stage stage, uint32_t begin, uint32_t last, bool gathered) {
    UnitTally<Weights> tally(amount.weights);
    float mass = 0.0f;  // the bins do not tell of the last one's, which may hold most tokens
    const auto estimate = [&](float value) {
      mass += amount.weights.approximate(value);
      count_up(&storage.table.words[rough_bin(value)]);
    };
    if (stage == kDigit && gathered) {
      storage.table.visit_list(share.parts, [&](uint32_t at) {
        if (at - begin <= last - begin) add(at, begin, last);
      });
    } else if (stage == kEstimate && counts_all) {
      visit_values<Weights>(share, estimate);
    } else if (stage == kGather && counts_all && !amount.counts) {
      weigh_all(tally, from_ordered(top - begin), from_ordered(top - last));
    } else {
      const bool weighs = stage == kGather && !amount.counts;
      const uint32_t from = weighs ? 0 : begin, to = weighs ? lowest : last;
      visit_hits<Weights>(
          share, [&](float value) { return top - Weights::key(value) - from <= to - from; },
          [&](float value, int) {
            const uint32_t at = top - Weights::key(value);
            if (stage == kEstimate) return estimate(value);
            if (stage == kDigit) return add(at, begin, last);
            if (weighs) tally.add(value, at < begin);
            if (at - begin <= last - begin) list(value);
          });
    }
    BlockAmounts mine = BlockAmounts::none();
    if (stage == kEstimate) mine.total = uint64_t(mass_of_block(mass) * float(amount.weights.unit_scale()));
    if (stage == kGather && !amount.counts) {
      mine.above = tally.units_above(), mine.total = tally.units_total();
      mine = warp_merge_fast(reduce.of_warps(warp_merge_fast(mine)));
    }
    __syncthreads();
    mine.listed = storage.listed;
    return mine;
  }

  WL_DEVICE float mass_of_block(float mass) const {
    return warp_merge(reduce.of_warps(MassSums{0.0f, warp_reduce(mass, Sum())})).total;
  }

  // Bins of 2**shift keys hold a span.
  WL_DEVICE static int shift_of(uint32_t span) { return max(0, 32 - __clz(span) - 9); }

  WL_DEVICE void clear(bool table) {
    if (table) {
      for (int word = threadIdx.x; word < Table::kWords; word += kThreads) storage.table.words[word] = 0;
    }
    if (threadIdx.x == 0) storage.found = {-1, -1, 0, 0}, storage.listed = 0;
    __syncthreads();
  }

  // Whether the rough bins are of weights, 96 for each power of two, rather than of values.
  WL_DEVICE bool bins_weights() const { return Weights::kFromLogits && !amount.counts; }
  // A weight's place among the bins, of logits.
  WL_DEVICE float rough_place(float value) const {
    const float scale = fminf(amount.weights.scale * kRoughOfOctave, kLargestFinite);
    return fminf((amount.weights.maximum - value) * scale, float(Table::kWords - 1));
  }
  WL_DEVICE int rough_bin(float value) const {
    if constexpr (Weights::kFromLogits) {
      if (bins_weights()) return int(__float_as_uint(__fadd_rd(rough_place(value), 0x1p23f)) & (Table::kWords - 1));
    }
    return int(min(__umulhi(Weights::offset(top, value), kBinsOfKey), uint32_t(Table::kWords - 1)));
  }
  // Offset of the largest value of a bin, or of a larger one.
  WL_DEVICE uint32_t offset_of(int bin) const {
    if constexpr (Weights::kFromLogits) {
      if (bins_weights()) {
        const float below = (float(bin) - 0x1p-6f) / (amount.weights.scale * kRoughOfOctave);
        return bin == 0 ? 0 : top - Weights::key(fminf(amount.weights.maximum - below, amount.weights.maximum));
      }
    }
    return ((uint32_t(bin) << 18) + 2) / 3;  // 2**32 / kBinsOfKey
  }

  // To the bins of the rough table between which the target lies. False if that can't be said.
  WL_DEVICE bool narrow(const Crossing& found, uint32_t& begin, uint32_t& last) const {
    if (found.begin < 0) return false;
    begin = min(offset_of(found.begin), last);
    if (found.end > found.begin && found.end < Table::kWords) last = max(begin, min(last, offset_of(found.end)));
    return true;
  }

  // What lies above the values in question, in all, and these: to all blocks. False if they are too many.
  WL_DEVICE bool gather(const BlockAmounts& mine) {
    storage.table.send_list(mine.listed, share.part, share.parts);
    const BlockAmounts of_part = reduce.exchange(mine);
    if (!amount.counts) above = warp_reduce(of_part.above, Sum()), total = warp_reduce(of_part.total, Sum());
    return storage.table.receive_list(of_part.listed, share.parts);
  }

  WL_DEVICE void list(float value) {
    const int place = atomicAdd(&storage.listed, 1);
    if (place < Table::kWords) storage.table.words[place] = top - Weights::key(value);
  }

  WL_DEVICE void weigh_all(UnitTally<Weights>& tally, float high, float low) {
    constexpr int kWidth = kVecWidth<T>, kSome = 1;  // registers are short, and code
    share.template visit_groups<kSome>(false, [&](const Packed(&groups)[kSome], int first) {
      uint32_t hits = 0;
#pragma unroll
      for (int i = 0; i < kSome; ++i) {
        float values[kWidth];
        numbers_of<T, Weights>(groups[i], values);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          const bool is_above = values[j] > high;
          tally.add(values[j], is_above);
          hits |= uint32_t(!is_above && values[j] >= low) << (i * kWidth + j);
        }
      }
      if (!Share::kIsResident) tally.carry();  // else a thread has not so many tokens
#pragma unroll 1
      for (; hits; hits &= hits - 1) {
        const int n = __ffs(hits) - 1, group = first + n / kWidth * kBatchStep<T>;
        if (group * kWidth + n % kWidth < share.row.vocab) list(Weights::value(to_float(share.token(group, n % kWidth))));
      }
      __syncwarp();
    });
  }

  // 64-bit sums as two atomic additions: shared memory has none of 64 bits.
  WL_DEVICE void add(uint32_t at, uint32_t begin, uint32_t last) {
    const int bin = int((at - begin) >> shift_of(last - begin));
    const uint64_t units = amount.exact(from_ordered(top - at));
    const uint32_t low = uint32_t(units), high = uint32_t(units >> 32);
    uint32_t* words = storage.table.words + bin;
    const uint32_t carry = low && atomicAdd(words, low) > ~low;
    if (high + carry) atomicAdd(words + kDigits, high + carry);
  }

  WL_DEVICE uint64_t sum(int bin, bool exact) const {
    const uint32_t* words = storage.table.words + bin;
    if (exact) return words[0] | uint64_t(words[kDigits]) << 32;
    return amount.counts ? words[0] : amount.rough(words[0], middle_of(bin));
  }

  // A value that weighs what the tokens of a rough bin do on the average.
  WL_DEVICE float middle_of(int bin) const {
    if constexpr (Weights::kFromLogits) {
      return amount.weights.maximum - (float(bin) + 0.5f) / (amount.weights.scale * kRoughOfOctave);
    }
    const uint32_t first = (offset_of(bin) + kGrain - 1) / kGrain * kGrain, last = (offset_of(bin + 1) - 1) / kGrain * kGrain;
    return from_ordered(top - min(first + (last - first) / 2, lowest));
  }

  // The amount of a bin, times that of one of its tokens as a share of the largest possible.
  WL_DEVICE uint64_t square(int bin, uint64_t all) const {
    const uint32_t tokens = storage.table.words[bin];
    // Tokens of 16-bit logits err together: a bin has few values.
    const float apart = Weights::kFromLogits && sizeof(T) == 2 ? 1.0f : float(tokens);
    return tokens ? uint64_t(float(all) * (float(all) * 0x1p-42f / apart)) : 0;
  }
  // Tokens are anywhere in their bins, of 1/96 at most: their errors add up as their squares do. Four standard deviations.
  WL_DEVICE uint64_t rough_error(uint64_t squares) const {
    return amount.counts ? 0 : (total >> 14) + uint64_t(0.012f * sqrtf(float(squares) * 0x1p42f));
  }

  // Where the target lies in a table of the row.
  WL_DEVICE Crossing cross(bool exact) {
    constexpr int kOwn = Table::kWords / kThreads;
    const int own = exact ? kOwn / 2 : kOwn, first = int(threadIdx.x) * own;
    uint64_t mine = 0, squares = 0, bins[kOwn];
#pragma unroll
    for (int n = 0; n < kOwn; ++n) {
      bins[n] = n < own ? sum(first + n, exact) : 0;
      mine += bins[n];
      if (!exact && !amount.counts) squares += square(first + n, bins[n]);
    }
    uint64_t before = warp_prefix_sum(mine);  // of the warp's bins up to and with the lane's
    squares = warp_reduce(squares, Sum());
    if (lane_id() == kWarpSize - 1) storage.warps[warp_id()] = before, storage.squares[warp_id()] = squares;
    __syncthreads();
    before += above - mine;
    squares = 0;
    for (int warp = 0; warp < kThreads / kWarpSize; ++warp) {
      before += warp < warp_id() ? storage.warps[warp] : 0;
      squares += storage.squares[warp];
    }
    const uint64_t slack = exact ? 0 : rough_error(squares);
#pragma unroll
    for (int n = 0; n < kOwn; ++n) {
      if (n < own) exact ? cross_exact(first + n, before, bins[n]) : cross_rough(first + n, before, bins[n], slack);
      before += bins[n];
    }
    __syncthreads();
    const Crossing found = storage.found;
    __syncthreads();
    return found;
  }

  WL_DEVICE void cross_exact(int bin, uint64_t before, uint64_t here) {
    if (reached(double(before), double(total)) || !reached(double(before + here), double(total))) return;
    storage.found = {bin, bin + 1, before, here};
  }

  WL_DEVICE void cross_rough(int bin, uint64_t before, uint64_t here, uint64_t slack) {
    const double all = double(total);
    if (!reached(double(before + slack), all) && reached(double(before + here + slack), all)) {
      storage.found.begin = bin, storage.found.above = before;
    }
    if (!reached(double(before), all + double(slack)) && reached(double(before + here), all + double(slack))) {
      storage.found.end = bin + 1;
    }
  }
};

template <int kThreads, class Amounts, class Share, class Reached>
WL_DEVICE Threshold find_threshold(Share& share, RowReduce& reduce, ThresholdStorage& storage, const Amounts& amount, uint32_t top,
                                   float base, Reached reached) {
  return ThresholdSearch<Amounts, kThreads, Share, Reached>(share, reduce, storage, amount, top, base, reached).find();
}

}  // namespace warploom::sampling
