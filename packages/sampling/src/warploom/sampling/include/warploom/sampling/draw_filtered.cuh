// A draw from what top-k, top-p and min-p keep of a row that stays in shared memory.
//
// Top-k and min-p are thresholds on the values, found first. Top-p is not: a token is drawn from all that the others keep, and
// only then its place in the nucleus is asked for, which takes one sum. Only if it lies outside, or too close to say, the
// nucleus is cut out exactly, and drawn from.
#pragma once

#include "warploom/sampling/candidates.cuh"
#include "warploom/sampling/draw.cuh"
#include "warploom/sampling/min_p.cuh"
#include "warploom/sampling/row_share.cuh"
#include "warploom/sampling/threshold.cuh"
#include "warploom/sync.cuh"

namespace warploom::sampling {

struct FilterStorage {
  RowReduceStorage reduce;
  RaceStorage race;
  ThresholdStorage threshold;
  uint64_t landed[kShareStages];
  Winner winner;
};

template <class Config>
struct FilteredDraw {
  using T = typename Config::In;
  using Weights = conditional_t<Config::kFromLogits, LogitWeights, ProbWeights>;
  using Share = RowShare<T, Config::kResident>;

  const DrawParams& params;
  FilterStorage& storage;
  RowReduce& reduce;
  Share& share;
  float scale;
  float minimum;  // values below can not be drawn
  float base;     // or do not belong to what top_p is a share of
  float mass;     // of what `filter` keeps; NaN where that is not known
  bool bad;

  WL_DEVICE FilteredDraw(const DrawParams& params, FilterStorage& storage, RowReduce& reduce, Share& share)
      : params(params),
        storage(storage),
        reduce(reduce),
        share(share),
        scale(params.scale(row_index())),
        minimum(negative_infinity()),
        base(negative_infinity()),
        mass(quiet_nan()),
        bad(false) {}

  // Read where they are used: registers are short while a race runs.
  WL_DEVICE RowFilters filters() const { return params.row_filters(row_index()); }
  WL_DEVICE Draws draws(int round) const { return params.draws(row_index(), round); }

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
    return find_threshold<Weights, Config::kThreads>(
        share, reduce, storage.threshold, Amount<Weights>{Weights(maximum, scale), counts}, Weights::key(maximum), least,
        [=](double amount, double total) { return amount >= double(target) * (counts ? 1.0 : total); });
  }

  // Where the search for the k-th largest value may end.
  WL_DEVICE float lowest(float maximum, float largest_of_thread) {
    return lowest_candidate<Weights, Config::kThreads>(filters().top_k, maximum, largest_of_thread, reduce);
  }

  WL_DEVICE RaceState race(RowScan<Weights>& scan, const Draws& draws, bool first) {
    share.visit_batches(first, [&](const Packed(&groups)[kBatch], int batch) {
      scan.template enter<T, true>(groups, batch, draws, minimum);
    });
    return race_of_row(scan, reduce, storage.race);
  }

  WL_DEVICE Winner winner(RaceState state, const RowScan<Weights>& scan, const Draws& draws) {
    const Weights weights(state.reference, scale);
    settle_contenders<T>(state, scan, share, reduce, minimum, draws);
    // One warp, and the others wait: sixteen would fight over the units for float64.
    if (warp_id() == 0) {
      const Winner found = winner_of_batch<T>(share.row, state.batch, minimum, weights, draws);
      if (lane_id() == 0) storage.winner = found;
    }
    __syncthreads();
    return storage.winner;
  }

  // Whether a value is in the nucleus beyond doubt: less than its share lies above.
  WL_DEVICE bool surely_inside(float value, const Weights& weights) {
    const MassSums sums = row_masses(share, reduce, weights, value, base);
    return sums.above < (filters().top_p - 2 * mass_error(share.tokens_of_thread())) * sums.total;
  }

  // A token or what is the matter.
  WL_DEVICE int draw() {
    bool fresh = true;  // nothing of the row has been visited
    float reference = RowScan<Weights>::lowest();
    // Two rounds of one loop, because what is in it is long.
#pragma unroll 1
    for (int round = 0;; ++round) {
      if (round > 0 || filters().ask_first(share.row.vocab)) {
        const RowMaximum largest = largest_value<Weights>(share, fresh);
        const float maximum = reduce(largest).value;
        if (!Weights::valid(maximum, scale)) return kBadRow;
        fresh = false;
        reference = Weights(maximum, scale).reference();
        float threshold = negative_infinity();
        if (round > 0 || filters().selects(share.row.vocab)) {
          threshold = find(round == 0, maximum, round > 0 ? base : lowest(maximum, largest.value)).value();
        }
        if (round == 0) {
          set_minimum(maximum, threshold);
        } else {
          if (storage.winner.value >= threshold) return storage.winner.token;
          minimum = fmaxf(minimum, threshold);
        }
      }
      const Draws draws = this->draws(round);
      RowScan<Weights> scan(scale, reference);
      const RaceState state = race(scan, draws, fresh);
      if (fresh && !can_draw<Weights>(state)) return kBadRow;
      fresh = false;
      const Winner found = winner(state, scan, draws);
      if (round > 0 || !filters().cut() || surely_inside(found.value, Weights(state.reference, scale))) return found.token;
    }
  }

  // Finds every threshold; returns the row's maximum, and says if it is `bad`.
  WL_DEVICE float filter() {
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
        } else if (found.value() >= minimum) {
          minimum = found.value();
          mass = float(double(found.above + found.at) / Weights(maximum, scale).unit_scale());
        }
      }
      if (!counts) return maximum;
      set_minimum(maximum, of_top_k);
    }
  }
};

// Grid: rows x blocks of a row, those of one row next to each other (and one cluster if more than one).
template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocksPerSm)
    draw_filtered_kernel(const __grid_constant__ DrawParams params) {
  using Draw = FilteredDraw<Config>;
  extern __shared__ __align__(128) Packed held[];
  __shared__ FilterStorage storage;
  const int64_t index = row_index();
  if (params.only_pending) {
    wait_for_previous_kernel();
    if (!params.is_pending(index)) return;
  }
  const int64_t source_row = params.source_row(index);
  if (!params.has(source_row)) return params.finish(index, kBadRow);
  RowReduce reduce(storage.reduce, row_part(), row_parts());
  typename Draw::Share share(params.load_row<typename Draw::T>(source_row), row_part(), row_parts(), held, storage.landed);
  __syncthreads();
  Draw draw(params, storage, reduce, share);
  params.finish(index, draw.draw());
}

}  // namespace warploom::sampling
