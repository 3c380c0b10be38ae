// A draw from what top-k, top-p and min-p keep of a row that stays in shared memory.
//
// Top-k and min-p are thresholds on the values, found first. Top-p is no threshold to be found: a token is drawn from all that
// the others keep, and only then its place in the nucleus is asked for, which takes one sum. If it lies outside, so do all
// tokens of its value and below, and the draw is repeated among those above: for top_p = 0.9 once in ten rows. After three
// rounds, or if a token is too close to say, the nucleus is cut out exactly, so that no distribution takes longer.
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
  using Weights = WeightsOf<Config>;
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

  // Whether a value is in the nucleus: 1 or -1, or 0 if it is too close to say. It is if less than its share lies above.
  WL_DEVICE int place(float value, const Weights& weights) {
    const MassSums sums = row_masses(share, reduce, weights, value, base);
    const float difference = sums.above - filters().top_p * sums.total;
    const float error = 2 * mass_error(share.tokens_of_thread()) * sums.total;
    return difference < -error ? 1 : difference > error ? -1 : 0;
  }

  // A token or what is the matter. Values up to `rejected`, if that is a number, have been rejected in the first round.
  WL_DEVICE int draw(float rejected, float reference) {
    constexpr int kSure = 1, kDoubt = 0;
    int round = 0;
    bool fresh = true, started = false, doubts = false;  // nothing has been visited; drawn; the winner's place is not known
    bool asks = filters().ask_first(share.row.vocab);
    float inside = quiet_nan();  // the smallest value of the nucleus, once it is known
    if (rejected == rejected) minimum = next_above(rejected), round = 1, started = true;
    // One loop, because a search and a race are long: a search where the next step asks for it, then a race.
#pragma unroll 1
    for (;;) {
      if (asks) {
        const RowMaximum largest = largest_value<Weights>(share, fresh);
        const float maximum = reduce(largest).value;
        if (!Weights::valid(maximum, scale)) return kBadRow;
        fresh = asks = false;
        reference = Weights(maximum, scale).reference();
        float threshold = negative_infinity();
        if (started || filters().selects(share.row.vocab)) {
          threshold = find(!started, maximum, started ? base : lowest(maximum, largest.value)).value();
        }
        if (!started) {
          set_minimum(maximum, threshold);
        } else {
          inside = threshold;
          if (doubts && storage.winner.value >= inside) return storage.winner.token;
          if (doubts) minimum = next_above(storage.winner.value), ++round;
        }
      }
      if (round == kTopPRounds) minimum = fmaxf(minimum, inside);
      const Draws draws = this->draws(round);
      RowScan<Weights> scan(scale, reference);
      const RaceState state = race(scan, draws, fresh);
      if (!started && fresh && !can_draw<Weights>(state)) return kBadRow;
      fresh = false, started = true;
      const Winner found = winner(state, scan, draws);
      if (!filters().cut() || found.value >= inside) return found.token;
      const bool known = inside == inside;
      const int place = known ? -1 : this->place(found.value, Weights(state.reference, scale));
      if (place == kSure) return found.token;
      doubts = place == kDoubt;
      if (!doubts) minimum = next_above(found.value), ++round;
      asks = doubts || (round == kTopPRounds && !known);
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
  const Rejected before = params.rejected_before(index);
  params.finish(index, draw.draw(before.value, Draw::Weights(before.reference, draw.scale).reference()));
}

}  // namespace warploom::sampling
