// A draw from the k largest of a row, and what the other filters leave of them, for a k of some hundreds: one look at the row,
// then all work is on the few tokens that can be among the k largest. Rows for which these are too many, and those whose top_p
// is too close to say, are left to `draw_filtered.cuh`.
#pragma once

#include "warploom/sampling/candidate_draw.cuh"
#include "warploom/sampling/draw.cuh"
#include "warploom/sampling/min_p.cuh"
#include "warploom/sampling/row_share.cuh"
#include "warploom/sync.cuh"

namespace warploom::sampling {

struct TopKDrawStorage {
  RowReduceStorage reduce;
  CandidateStorage candidates;
  uint64_t landed[kShareStages];
  uint64_t arrived;  // candidates
};

template <class Config>
struct TopKDraw {
  using T = typename Config::In;
  using Weights = WeightsOf<Config>;
  using Share = RowShare<T, Config::kResident>;
  using Few = CandidateDraw<Weights, Config::kThreads>;

  const DrawParams& params;
  TopKDrawStorage& storage;
  RowReduce& reduce;
  Share& share;
  float scale;

  // Read where they are used: registers are short.
  WL_DEVICE RowFilters filters() const { return params.row_filters(row_index()); }

  // A token or what is the matter; for the first block.
  WL_DEVICE int draw(CandidateScratch& scratch) {
    const Contest largest = largest_batches<Weights>(share);
    const float maximum = reduce(RowMaximum{largest.best}).value;
    if (!Weights::valid(maximum, scale)) return kBadRow;
    const Weights weights(maximum, scale);
    const RowFilters filters = this->filters();
    const float of_min_p = filters.min_p > 0 ? min_p_threshold(weights, maximum, filters.min_p) : negative_infinity();
    const float lowest = lowest_candidate<Weights, Config::kThreads>(filters.top_k, maximum, largest.best, reduce);
    float mass = 0.0f;  // that top_p is a share of, if not one of the candidates
    if (filters.cut() && !(filters.steps & kTopKBeforeTopP)) {
      mass = row_masses(share, reduce, weights, maximum, filters.base(negative_infinity(), of_min_p)).total;
    }
    const int count = collect_candidates<Weights>(share, reduce, lowest, largest, storage.candidates, &storage.arrived,
                                                  scratch.keys);
    if (count == kTooMany) return kPending;
    return share.part == 0 ? draw_candidates(count, maximum, of_min_p, mass, scratch) : 0;
  }

 private:
  WL_DEVICE int draw_candidates(int count, float maximum, float of_min_p, float mass, CandidateScratch& scratch) {
    const RowFilters filters = this->filters();
    const Weights weights(maximum, scale);
    Few few(scratch, count, storage.reduce, weights);
    const float of_top_k = few.largest_but(filters.top_k);
    const float minimum = filters.minimum(maximum, of_top_k, of_min_p), base = filters.base(of_top_k, of_min_p);
    float left = minimum, inside = negative_infinity();
    Draws draws = params.draws(row_index());
    // Rounds of `warploom.sampling.steps`.
    for (int round = 0;; ++round) {
      const CandidateRound found = few.round(round < kTopPRounds ? left : fmaxf(left, inside), base, draws);
      if (!filters.cut()) return found.first.token;
      if (round == 0) {
        const bool has_all = filters.steps & kTopKBeforeTopP || count < filters.top_k;
        inside = has_all ? few.reaching(double(filters.top_p) * double(found.units)) : nucleus_of_row(few, weights, mass);
        if (!(inside == inside)) return kPending;
      }
      const float value = few.value(found.first.place);
      if (value >= inside) return found.first.token;
      left = next_above(value);
      draws.next_round();
    }
  }

  // The smallest value inside, by the approximate mass of the row; NaN if that leaves doubt.
  WL_DEVICE float nucleus_of_row(Few& few, const Weights& weights, float mass) const {
    const double target = double(filters().top_p) * double(mass) * weights.unit_scale();
    const double error = 2 * mass_error(share.tokens_of_thread());
    const float low = few.reaching(target * (1 + error));
    return low == few.reaching(target * (1 - error)) ? low : quiet_nan();
  }
};

// Grid: rows x blocks of a row, those of one row next to each other (and one cluster if more than one).
template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocksPerSm)
    draw_top_k_kernel(const __grid_constant__ DrawParams params) {
  using Draw = TopKDraw<Config>;
  extern __shared__ __align__(128) Packed held[];
  __shared__ TopKDrawStorage storage;
  const int64_t index = row_index();
  allow_next_kernel();
  const int64_t source_row = params.source_row(index);
  if (!params.has(source_row)) return params.finish(index, kBadRow);
  const RowFilters filters = params.row_filters(index);
  if (!filters.selects(params.vocab) || filters.top_k > CandidateStorage::kCapacity) return params.finish(index, kPending);
#if __CUDA_ARCH__ >= 900
  if (threadIdx.x == 0) mbarrier_init(&storage.arrived, 1);  // RowReduce has the fence
#endif
  RowReduce reduce(storage.reduce, row_part(), row_parts());
  typename Draw::Share share(params.load_row<typename Draw::T>(source_row), row_part(), row_parts(), held, storage.landed);
  __syncthreads();
  Draw draw{params, storage, reduce, share, params.scale(index)};
  params.finish(index, draw.draw(reinterpret_cast<CandidateScratch&>(*held)));
}

}  // namespace warploom::sampling
