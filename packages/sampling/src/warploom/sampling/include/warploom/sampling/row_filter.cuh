// What top-k, top-p and min-p keep of a row: their thresholds on the values, exactly.
#pragma once

#include "warploom/sampling/candidates.cuh"
#include "warploom/sampling/draw.cuh"
#include "warploom/sampling/min_p.cuh"
#include "warploom/sampling/row_share.cuh"
#include "warploom/sampling/threshold.cuh"

namespace warploom::sampling {

struct RowFilterStorage {
  RowReduceStorage reduce;
  ThresholdStorage threshold;
  uint64_t landed[kShareStages];
};

template <class Config>
struct RowFilter {
  using T = typename Config::In;
  using Weights = WeightsOf<Config>;
  using Share = RowShare<T, Config::kResident>;

  const DrawParams& params;
  RowFilterStorage& storage;
  RowReduce& reduce;
  Share& share;
  const int row;  // of the parameters
  float scale;
  float minimum;  // smallest value that top_k and min_p keep
  float base;     // and that of what top_p is a share of
  float nucleus;  // smallest value that top_p keeps
  double mass;    // of the nucleus; NaN where that is not known, or it is not all that decides
  bool bad;

  WL_DEVICE RowFilter(const DrawParams& params, RowFilterStorage& storage, RowReduce& reduce, Share& share,
                       int64_t row)
      : params(params),
        storage(storage),
        reduce(reduce),
        share(share),
        row(int(row)),
        scale(params.scale(row)),
        minimum(negative_infinity()),
        base(negative_infinity()),
        nucleus(negative_infinity()),
        mass(quiet_nan()),
        bad(false) {}

  // Read where they are used: registers are short while a race runs.
  WL_DEVICE RowFilters filters() const { return params.row_filters(row); }

  // Finds every threshold; returns the row's maximum, and says if it is `bad`.
  WL_DEVICE float find_all() {
    const RowMaximum largest = largest_value<Weights>(share, true);
    const float maximum = reduce(largest).value;
    bad = !Weights::valid(maximum, scale);
    if (bad) return maximum;
    float of_top_k = negative_infinity();
    const bool selects = filters().selects(share.row.vocab);
    const float least = selects ? lowest(maximum, largest.value) : negative_infinity();
#pragma unroll 1
    for (bool counts = true;; counts = false) {
      if (counts ? selects : filters().cut()) {
        const Threshold found = find(counts, maximum, counts ? least : base);
        if (counts) {
          of_top_k = found.value();
          sync_parts(share.parts);  // before the next search
        } else if (found.value() >= minimum) {
          nucleus = found.value();
          mass = double(found.above + found.at) / Weights(maximum, scale).unit_scale();
        }
      }
      if (!counts) return maximum;
      set_minimum(maximum, of_top_k);
    }
  }

  // What top_k and min_p leave. Their values are the smallest that each keeps.
  WL_DEVICE void set_minimum(float maximum, float of_top_k) {
    const RowFilters filters = this->filters();
    const Weights weights(maximum, scale);
    const float of_min_p = filters.min_p > 0 ? min_p_threshold(weights, maximum, filters.min_p) : negative_infinity();
    minimum = filters.minimum(maximum, of_top_k, of_min_p);
    base = filters.base(of_top_k, of_min_p);
  }

  // The k-th largest value, or the smallest one of the nucleus.
  WL_DEVICE Threshold find(bool counts, float maximum, float least) {
    const float target = counts ? float(filters().top_k) : filters().top_p;
    return find_threshold<Config::kThreads>(
        share, reduce, storage.threshold, Amount<Weights>{Weights(maximum, scale), counts}, Weights::key(maximum), least,
        [=](double amount, double total) { return amount >= double(target) * (counts ? 1.0 : total); });
  }

  // The k-th largest value, in a kernel that asks for no other.
  WL_DEVICE float find_top_k(float maximum, float least) {
    const double target = filters().top_k;
    return find_threshold<Config::kThreads>(share, reduce, storage.threshold, Count<Weights>(), Weights::key(maximum), least,
                                            [=](double count, double) { return count >= target; })
        .value();
  }

  // Where the search for the k-th largest value may end.
  WL_DEVICE float lowest(float maximum, float largest_of_thread) {
    return lowest_candidate<Weights, Config::kThreads>(filters().top_k, maximum, largest_of_thread, reduce);
  }
};

}  // namespace warploom::sampling
