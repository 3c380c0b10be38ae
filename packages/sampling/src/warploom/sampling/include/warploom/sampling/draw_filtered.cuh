// A draw from what top-k, top-p and min-p keep of a row that stays in shared memory.
//
// Top-k and min-p are thresholds on the values, found first; where k is small, all further work is on the few tokens that
// can be among the k largest. Top-p is no threshold to be found: a token is drawn from all that the others keep, and only
// then its place in the nucleus is asked for, which takes one sum. If it lies outside, so do all tokens of its value and
// below, and the draw is repeated among those above: for top_p = 0.9 once in ten rows. After seven rounds the nucleus is cut
// out exactly and drawn from, so that no distribution takes longer.
#pragma once

#include "warploom/sampling/candidate_draw.cuh"
#include "warploom/sampling/draw.cuh"
#include "warploom/sampling/min_p.cuh"
#include "warploom/sampling/row_share.cuh"
#include "warploom/sampling/threshold.cuh"

namespace warploom::sampling {

struct FilterStorage {
  RowReduceStorage reduce;
  RaceStorage race;
  union {
    ThresholdStorage threshold;
    CandidateStorage candidates;
  };
  uint64_t landed[kShareStages];
  uint64_t arrived;  // candidates
  Winner winner;
};

template <class Config>
struct FilteredDraw {
  using T = typename Config::In;
  using Weights = conditional_t<Config::kFromLogits, LogitWeights, ProbWeights>;
  using Share = RowShare<T, Config::kResident>;

  FilterStorage& storage;
  RowReduce& reduce;
  Share& share;
  float scale;
  int top_k;
  float min_p;
  Nucleus nucleus;
  int filters;
  float minimum;  // values below can not be drawn any more
  float total;    // approximate mass that top_p is a share of
  bool bad;

  WL_DEVICE FilteredDraw(const DrawParams& params, int64_t index, FilterStorage& storage, RowReduce& reduce, Share& share)
      : storage(storage),
        reduce(reduce),
        share(share),
        scale(params.scale(index)),
        top_k(params.row_top_k(index)),
        min_p(params.row_min_p(index)),
        nucleus{params.row_top_p(index), negative_infinity()},
        filters(params.filters),
        minimum(negative_infinity()),
        total(0.0f),
        bad(false) {}

  // The first visit of a row without thresholds is its race, too.
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

  // A value that no token outside the k largest reaches, or a lower one.
  WL_DEVICE float lowest_candidate(float maximum, float largest_of_thread) {
    const float lowest = Weights::kFromLogits ? -kLargestFinite : 0x1p-149f;  // that can be drawn
    return top_k <= Config::kThreads * share.parts ? fmaxf(reached_by(top_k, maximum, largest_of_thread, reduce), lowest) : lowest;
  }

  WL_DEVICE float top_k_threshold(float lowest) {
    const uint64_t target = top_k;
    return find_threshold<Weights, Config::kThreads>(
               share, CountAmount(), lowest, [=](uint64_t count) { return count >= target; }, storage.threshold)
        .value();
  }

  // Leaves only the nucleus.
  WL_DEVICE void cut(const Weights& weights) {
    const Weights exact = Nucleus::exact_weights(weights, share, reduce);
    const UnitSums sums = row_units(share, reduce, exact, nucleus.base, negative_infinity());
    const Nucleus n = nucleus;
    const Threshold threshold = find_threshold<Weights, Config::kThreads>(
        share, UnitAmount<Weights>{exact}, n.base, [=](uint64_t units) { return n.reached(units, sums.total); },
        storage.threshold);
    minimum = fmaxf(minimum, threshold.value());
  }

  WL_DEVICE void set_minimum(float maximum, float of_top_k, float of_min_p) {
    const float none = negative_infinity();
    minimum = nucleus.p <= 0 ? maximum : fmaxf(of_top_k, of_min_p);
    nucleus.base = fmaxf(filters & kTopKBeforeTopP ? of_top_k : none, filters & kMinPBeforeTopP ? of_min_p : none);
  }

  WL_DEVICE float mass_of_base(float maximum) {
    const float base = nucleus.base;
    return row_mass(share, reduce, Weights(maximum, scale), [=](float value) { return value >= base; });
  }

  using Few = CandidateDraw<Weights, Config::kThreads>;

  // As `draw_rounds`, by the first block alone.
  WL_DEVICE int draw_candidates(int count, float maximum, float of_min_p, Draws draws, CandidateScratch& scratch) {
    const Weights weights(maximum, scale);
    Few few(scratch, count, storage.reduce, weights);
    set_minimum(maximum, few.largest_but(top_k), of_min_p);
    const bool of_candidates = filters & kTopKBeforeTopP || count < top_k;
    float inside = negative_infinity();
    for (int round = 0;; ++round) {
      const CandidateRound found = few.round(round < kTopPRounds ? minimum : fmaxf(minimum, inside), nucleus.base, draws);
      if (!nucleus.cuts()) return found.first.token;
      if (round == 0) {
        inside = of_candidates ? few.reaching(double(nucleus.p) * double(found.units)) : nucleus_of_row(few, weights);
      }
      const float value = few.value(found.first.place);
      if (value >= inside) return found.first.token;
      minimum = next_above(value);
      draws.next_round();
    }
  }

  // The share is one of the whole row: by its approximate mass, if that leaves no doubt.
  WL_DEVICE float nucleus_of_row(Few& few, const Weights& weights) {
    const double target = double(nucleus.p) * double(total) * weights.unit_scale();
    const double error = 2 * mass_error(share.tokens_of_thread());
    const float low = few.reaching(target * (1 + error));
    if (low == few.reaching(target * (1 - error))) return low;
    RowShare<T, false> whole(share.row, 0, 1, nullptr, nullptr);
    const UnitSums sums = row_units(whole, few.reduce, weights, nucleus.base, negative_infinity());
    return few.reaching(double(nucleus.p) * double(sums.total));
  }

  // Finds every threshold; returns the row's maximum.
  WL_DEVICE float filter() {
    const RowMaximum largest = largest_value<Weights>(share, true);
    const float maximum = reduce(largest).value;
    bad = !Weights::valid(maximum, scale);
    if (bad) return maximum;
    const Weights weights(maximum, scale);
    float of_top_k = negative_infinity();
    if (top_k >= 1 && top_k < share.row.vocab) of_top_k = top_k_threshold(lowest_candidate(maximum, largest.value));
    set_minimum(maximum, of_top_k, min_p > 0 ? min_p_threshold(weights, maximum, min_p) : negative_infinity());
    if (nucleus.cuts()) cut(weights);
    return maximum;
  }

  // The rounds of a draw over the row, of which nothing is known yet if this is the `first` visit.
  WL_DEVICE int draw_rounds(float reference, bool first, Draws draws) {
    for (int round = 0;; ++round) {
      RowScan<Weights> scan(scale, reference);
      RaceState state = race(scan, draws, first);
      if (first) {
        bad = !can_draw<Weights>(state);
        if (bad) return 0;
        total = state.mass;
        reference = Weights(state.reference, scale).reference();
        first = false;
      }
      const Winner found = winner(state, scan, draws);
      if (!nucleus.cuts() || round == kTopPRounds) return found.token;
      const Weights weights(state.reference, scale);
      if (nucleus.keeps(found.value, total, weights, share, reduce)) return found.token;
      minimum = next_above(found.value);
      if (round == kTopPRounds - 1) cut(weights);
      draws.next_round();
    }
  }

  WL_DEVICE int draw(const Draws& draws, CandidateScratch* scratch) {
    const bool selects = Config::kTopK && top_k >= 1 && top_k < share.row.vocab;
    if (!selects && !(min_p > 0) && !(nucleus.p <= 0)) return draw_rounds(RowScan<Weights>::lowest(), true, draws);
    const RowMaximum largest = largest_value<Weights>(share, true);
    const float maximum = reduce(largest).value;
    bad = !Weights::valid(maximum, scale);
    if (bad) return 0;
    const Weights weights(maximum, scale);
    float of_top_k = negative_infinity();
    const float of_min_p = min_p > 0 ? min_p_threshold(weights, maximum, min_p) : negative_infinity();
    if constexpr (Config::kTopK) {
      if (selects) {
        const float lowest = lowest_candidate(maximum, largest.value);
        set_minimum(maximum, of_top_k, of_min_p);
        if (nucleus.cuts() && !(filters & kTopKBeforeTopP)) total = mass_of_base(maximum);
        const int count = collect_candidates<Weights>(share, reduce, lowest, largest.value, storage.candidates,
                                                      &storage.arrived, scratch->keys);
        if (count != kTooMany) {
          return share.part == 0 ? draw_candidates(count, maximum, of_min_p, draws, *scratch) : 0;
        }
        of_top_k = top_k_threshold(lowest);
      }
    }
    set_minimum(maximum, of_top_k, of_min_p);
    if (nucleus.cuts()) total = mass_of_base(maximum);
    return draw_rounds(weights.reference(), false, draws);
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
  const int64_t source_row = params.source_row(index);
  if (!params.has(source_row)) return params.reject(index);
#if __CUDA_ARCH__ >= 900
  if (Config::kTopK && threadIdx.x == 0) mbarrier_init(&storage.arrived, 1);  // RowReduce has the fence
#endif
  RowReduce reduce(storage.reduce, row_part(), row_parts());
  typename Draw::Share share(params.load_row<typename Draw::T>(source_row), row_part(), row_parts(), held, storage.landed);
  __syncthreads();
  Draw draw(params, index, storage, reduce, share);
  const int token = draw.draw(params.draws(index), reinterpret_cast<CandidateScratch*>(held));
  draw.bad ? params.reject(index) : params.finish(index, token);
}

}  // namespace warploom::sampling
