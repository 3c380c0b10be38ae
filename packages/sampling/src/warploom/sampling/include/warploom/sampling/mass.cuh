// Sums over a row that decide about its nucleus: approximate in float32, and exact in units.
#pragma once

#include "warploom/sampling/row_reduce.cuh"
#include "warploom/sampling/row_scan.cuh"

namespace warploom::sampling {

struct RowMaximum {
  float value;  // NaN if there is one

  WL_DEVICE static RowMaximum none() { return {negative_infinity()}; }
  WL_DEVICE void merge(const RowMaximum& other) { value = max_or_nan(value, other.value); }
};

struct MassSum {
  float mass;

  WL_DEVICE static MassSum none() { return {0.0f}; }
  WL_DEVICE void merge(const MassSum& other) { mass += other.mass; }
};

// Units of the tokens above a value, and of all.
struct UnitSums {
  uint64_t above;
  uint64_t total;

  WL_DEVICE static UnitSums none() { return {0, 0}; }
  WL_DEVICE void merge(const UnitSums& other) { above += other.above, total += other.total; }
};

// Calls visitor(value) for every token of this thread; those beyond the row are -inf or 0.
template <class Weights, class Share, class Visitor>
WL_DEVICE void visit_values(Share& share, bool first, Visitor&& visitor) {
  using T = typename Share::Element;
  share.visit(first, [&](const Packed& packed, int) {
    float values[kVecWidth<T>];
    values_of<T>(packed, values, Weights::kFromLogits);
#pragma unroll
    for (float value : values) visitor(value);
  });
}

// Sixteen tokens at once, where it is worth the code.
template <class Weights, class Share, class Visitor>
WL_DEVICE void visit_values_fast(Share& share, bool first, Visitor&& visitor) {
  using T = typename Share::Element;
  share.visit_batches(first, [&](const Packed(&groups)[kBatch], int) {
#pragma unroll
    for (const Packed& packed : groups) {
      float values[kVecWidth<T>];
      values_of<T>(packed, values, Weights::kFromLogits);
#pragma unroll
      for (float value : values) visitor(value);
    }
  });
}

// Of this thread's part.
template <class Weights, class Share>
WL_DEVICE RowMaximum largest_value(Share& share, bool first) {
  RowMaximum largest = RowMaximum::none();
  visit_values_fast<Weights>(share, first, [&](float value) { largest.value = max_or_nan(largest.value, value); });
  return largest;
}

// Approximate mass of the row's tokens for which keep(value).
template <class Weights, class Share, class Keep>
WL_DEVICE float row_mass(Share& share, RowReduce& reduce, const Weights& weights, Keep keep) {
  MassSum sum = MassSum::none();
  visit_values_fast<Weights>(share, false, [&](float value) {
    if (keep(value)) sum.mass += weights.approximate(value);
  });
  return reduce(sum).mass;
}

// Units of the row's tokens of at least `minimum`, and of those above `value`.
template <class Weights, class Share>
WL_DEVICE UnitSums row_units(Share& share, RowReduce& reduce, const Weights& weights, float minimum, float value) {
  UnitSums sums = UnitSums::none();
  visit_values<Weights>(share, false, [&](float each) {
    const uint64_t units = each >= minimum ? weights.units(each) : 0;
    sums.total += units;
    sums.above += each > value ? units : 0;
  });
  return reduce(sums);
}

// A share p of the row's tokens of at least `base`: what the nucleus of top_p is decided by.
struct Nucleus {
  float p;
  float base;

  // p below 1 and above 0: a mass has to be found.
  WL_DEVICE bool cuts() const { return p < 1 && p > 0; }
  WL_DEVICE bool reached(uint64_t amount, uint64_t total) const { return double(amount) >= double(p) * double(total); }

  // Whether tokens of this value are inside: less than a share p lies above them.
  template <class Weights, class Share>
  WL_DEVICE bool keeps(float value, float total, const Weights& weights, Share& share, RowReduce& reduce) const {
    const float above = row_mass(share, reduce, weights, [=](float each) { return each > value; });
    const float difference = above - p * total;
    const float error = 2 * mass_error(share.tokens_of_thread()) * total;
    if (difference < -error) return true;
    if (difference > error) return false;
    const Weights exact = exact_weights(weights, share, reduce);
    const UnitSums sums = row_units(share, reduce, exact, base, value);
    return !reached(sums.above, sums.total);
  }

  // Weights relative to the row's maximum, which units are.
  template <class Weights, class Share>
  WL_DEVICE static Weights exact_weights(const Weights& weights, Share& share, RowReduce& reduce) {
    return weights.with_maximum(reduce(largest_value<Weights>(share, false)).value);
  }
};

}  // namespace warploom::sampling
