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

// What the first block makes of a row's candidates.
struct CandidateTask {
  int count;
  float maximum;
  float of_min_p;  // the smallest value that min_p keeps
  float mass;      // that top_p is a share of, if not one of the candidates
  float error;     // of that
};

// A token, or kPending where the approximate mass of the row leaves a doubt.
template <class Weights, int kThreads>
WL_DEVICE int token_of_candidates(const DrawParams& params, CandidateScratch& scratch, RowReduceStorage& storage,
                                  CandidateTask task) {
  const Weights weights(task.maximum, params.scale(row_index()));
  CandidateDraw<Weights, kThreads> few(scratch, task.count, storage, weights);
  const RowFilters filters = params.row_filters(row_index());
  const float of_top_k = few.largest_but(filters.top_k);
  const float base = filters.base(of_top_k, task.of_min_p);
  const float minimum = filters.minimum(task.maximum, of_top_k, task.of_min_p);
  float nucleus = minimum;
  if (filters.cut()) {
    const bool has_all = filters.steps & kTopKBeforeTopP || task.count < filters.top_k;
    const double units = has_all ? double(few.units_from(base)) : double(task.mass) * weights.unit_scale();
    const double target = double(filters.top_p) * units, error = has_all ? 0.0 : double(task.error);
    const float found = few.reaching(target * (1 + error));
    if (!has_all && found != few.reaching(target * (1 - error))) return kPending;
    nucleus = fmaxf(minimum, found);
  }
  const int place = few.first(minimum, nucleus, params.draws(row_index()));
  return place < 0 ? kPending : few.token(place);
}

template <class Config>
struct TopKDraw {
  using T = typename Config::In;
  using Weights = WeightsOf<Config>;
  using Share = RowShare<T, Config::kResident>;

  const DrawParams& params;
  TopKDrawStorage& storage;
  RowReduce& reduce;
  Share& share;
  float scale;

  WL_DEVICE void draw(CandidateScratch& scratch) {
    const Contest largest = largest_batches<Weights>(share);
    const float maximum = reduce(RowMaximum{largest.best}).value;
    if (!Weights::valid(maximum, scale)) return params.finish(row_index(), kBadRow);
    const Weights weights(maximum, scale);
    const RowFilters filters = params.row_filters(row_index());
    const float of_min_p = filters.min_p > 0 ? min_p_threshold(weights, maximum, filters.min_p) : negative_infinity();
    const float lowest = lowest_candidate<Weights, Config::kThreads>(filters.top_k, maximum, largest.best, reduce);
    float mass = 0.0f;
    if (filters.cut() && !(filters.steps & kTopKBeforeTopP)) {
      mass = row_masses(share, reduce, weights, maximum, filters.base(negative_infinity(), of_min_p)).total;
    }
    const int count = collect_candidates<Weights>(share, reduce, lowest, largest, storage.candidates, &storage.arrived,
                                                  scratch.keys);
    if (count == kTooMany) return params.finish(row_index(), kPending);
    if (share.part != 0) return;
    const CandidateTask task{count, maximum, of_min_p, mass, 2 * mass_error(share.tokens_of_thread())};
    params.finish(row_index(), token_of_candidates<Weights, Config::kThreads>(params, scratch, storage.reduce, task));
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
  draw.draw(reinterpret_cast<CandidateScratch&>(*held));
}

}  // namespace warploom::sampling
