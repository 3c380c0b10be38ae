// What a row's blocks find out together: its largest value, masses of parts of it.
#pragma once

#include "warploom/sampling/row_reduce.cuh"
#include "warploom/sampling/row_scan.cuh"

namespace warploom::sampling {

struct RowMaximum {
  float value;  // NaN if there is one

  WL_DEVICE static RowMaximum none() { return {negative_infinity()}; }
  WL_DEVICE void merge(const RowMaximum& other) { value = max_or_nan(value, other.value); }
};

// Approximate masses of the tokens above a value, and of those of at least another.
struct MassSums {
  float above;
  float total;

  WL_DEVICE static MassSums none() { return {0.0f, 0.0f}; }
  WL_DEVICE void merge(const MassSums& other) { above += other.above, total += other.total; }
};

// Sixteen tokens at a time.
template <class T>
constexpr int kTogether = 16 / kVecWidth<T>;

template <class T, class Weights>
WL_DEVICE void numbers_of(const Packed& packed, float (&values)[kVecWidth<T>]) {
  unpack<T>(packed, values);
#pragma unroll
  for (float& value : values) value = Weights::number(value);
}

// Calls visitor(value) for every token of this thread, in a row without NaN; those beyond the row are -inf or 0.
template <class Weights, class Share, class Visitor>
WL_DEVICE void visit_values(Share& share, Visitor&& visitor) {
  using T = typename Share::Element;
  share.template visit_groups<kTogether<T>>(false, [&](const Packed(&groups)[kTogether<T>], int) {
#pragma unroll
    for (const Packed& packed : groups) {
      float values[kVecWidth<T>];
      numbers_of<T, Weights>(packed, values);
#pragma unroll
      for (float value : values) visitor(value);
    }
  });
}

// Calls visitor(value) for every token of this thread, and rare(value, token) for those, a few of the row, for which it says so.
template <class Weights, class Share, class Visitor, class Rare>
WL_DEVICE void visit_hits(Share& share, Visitor&& visitor, Rare&& rare) {
  using T = typename Share::Element;
  constexpr int kWidth = kVecWidth<T>;
  share.template visit_groups<kTogether<T>>(false, [&](const Packed(&groups)[kTogether<T>], int first) {
    uint32_t hits = 0;
#pragma unroll
    for (int i = 0; i < kTogether<T>; ++i) {
      float values[kWidth];
      numbers_of<T, Weights>(groups[i], values);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) hits |= uint32_t(visitor(values[j])) << (i * kWidth + j);
    }
#pragma unroll 1
    for (; hits; hits &= hits - 1) {
      const int n = __ffs(hits) - 1, group = first + n / kWidth * kBatchStep<T>, token = group * kWidth + n % kWidth;
      if (token < share.row.vocab) rare(Weights::value(to_float(share.token(group, n % kWidth))), token);
    }
    __syncwarp();
  });
}

// Of this thread's part.
template <class Weights, class Share>
WL_DEVICE RowMaximum largest_value(Share& share, bool first) {
  using T = typename Share::Element;
  RowMaximum largest = RowMaximum::none();
  share.template visit_groups<kTogether<T>>(first, [&](const Packed(&groups)[kTogether<T>], int) {
#pragma unroll
    for (const Packed& packed : groups) {
      float values[kVecWidth<T>];
      unpack<T>(packed, values);
#pragma unroll
      for (float value : values) largest.value = max_or_nan(largest.value, value);
    }
  });
  largest.value = Weights::value(largest.value);
  return largest;
}

template <class Weights, class Share>
WL_DEVICE MassSums row_masses(Share& share, RowReduce& reduce, const Weights& weights, float value, float base) {
  MassSums sums = MassSums::none();
  visit_values<Weights>(share, [&](float each) {
    const float weight = weights.approximate(each);
    if (each > value) sums.above += weight;
    if (each >= base) sums.total += weight;
  });
  return reduce(sums);
}

}  // namespace warploom::sampling
