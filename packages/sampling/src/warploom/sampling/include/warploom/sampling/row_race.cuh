// The race of a row, from what its threads know to the token that is drawn.
#pragma once

#include "warploom/sampling/ordered.cuh"
#include "warploom/sampling/row_reduce.cuh"
#include "warploom/sampling/row_scan.cuh"

namespace warploom::sampling {

// The largest number of a warp; NaN if there is one.
WL_DEVICE float warp_max(float x) {
  __syncwarp();
  return from_ordered(__reduce_max_sync(kFullMask, ordered_with_nan(x)));
}

// Mass and best key of a block's part of a row, or of the row, and the threads whose best is within the error of it.
struct RaceState {
  float reference;
  float mass;
  float best;
  int contenders;
  int batch;  // of one contender

  WL_DEVICE static RaceState none() { return {-kLargestFinite, 0.0f, negative_infinity(), 0, 0}; }
};

struct RaceStorage {
  struct Warp {
    float reference, mass, best;
  };
  Warp warps[kWarpSize];
  int contenders;
  int batch;
};

// What lanes hold, relative to one reference: this is moved there, `mass` added up, `best` the largest.
template <class Weights>
WL_DEVICE void join_lanes(float& reference, float& mass, float& best, float scale) {
  const float common = warp_max(reference);
  if constexpr (Weights::kFromLogits) {
    const float shift = (reference - common) * scale;
    mass *= exp2_approx(shift);
    best += shift;
  }
  reference = common;
  mass = warp_reduce(mass, Sum());
}

template <class Weights>
WL_DEVICE RaceState race_of_block(const RowScan<Weights>& scan, RaceStorage& storage) {
  RaceStorage::Warp mine{scan.reference, scan.mass, scan.contest.best};
  join_lanes<Weights>(mine.reference, mine.mass, mine.best, scan.scale);
  mine.best = warp_max(mine.best);
  if (lane_id() == 0) storage.warps[warp_id()] = mine;
  if (threadIdx.x == 0) storage.contenders = 0;
  __syncthreads();
  const bool has_warp = lane_id() < int(blockDim.x) / kWarpSize;
  RaceState state = RaceState::none();
  if (has_warp) {
    const RaceStorage::Warp& warp = storage.warps[lane_id()];
    state.reference = warp.reference, state.mass = warp.mass, state.best = warp.best;
  }
  join_lanes<Weights>(state.reference, state.mass, state.best, scan.scale);
  state.best = warp_max(state.best);

  const float shift = Weights::kFromLogits ? (scan.reference - state.reference) * scan.scale : 0.0f;
  const float worst = state.best - kKeyError;
  if (scan.contest.best + shift >= worst) {
    atomicAdd(&storage.contenders, scan.contest.second + shift >= worst ? 2 : 1);
    atomicExch(&storage.batch, scan.contest.batch);  // any, if there are several
  }
  __syncthreads();
  state.contenders = storage.contenders;
  state.batch = storage.batch;
  return state;
}

// Every thread of every block of the row gets the same.
template <class Weights>
WL_DEVICE RaceState race_of_row(const RowScan<Weights>& scan, RowReduce& reduce, RaceStorage& storage) {
  RaceState state = reduce.exchange(race_of_block(scan, storage));
  join_lanes<Weights>(state.reference, state.mass, state.best, scan.scale);
  const float best = warp_max(state.best);
  if (!(state.best >= best - kKeyError)) state.contenders = 0;
  const int leader = __ffs(__ballot_sync(kFullMask, state.contenders > 0)) - 1;
  state.best = best;
  state.contenders = __reduce_add_sync(kFullMask, state.contenders);
  state.batch = __shfl_sync(kFullMask, state.batch, max(leader, 0));
  return state;
}

// Something can be drawn: no NaN, no infinite weight, one weight at least.
template <class Weights>
WL_DEVICE bool can_draw(const RaceState& state) {
  return fabsf(state.best) <= kLargestFinite && (Weights::kFromLogits || Weights::valid(state.reference, 0.0f));
}

// The first arrival of a batch, exactly. By one warp, for all its lanes. Not inline: long, and done once a row.
template <class T, class Row, class Weights>
__device__ __noinline__ Arrival first_of_batch(Row row, int batch, float minimum, Weights weights, Draws draws) {
  constexpr int kWidth = kVecWidth<T>;
  const int lane = lane_id();
  const int token = (batch + lane / kWidth * kBatchStep<T>) * kWidth + lane % kWidth;
  const bool inside = lane < kBatch * kWidth && token < row.vocab;
  const float value = inside ? Weights::value(to_float(row.load_token(token))) : negative_infinity();
  const double weight = inside && value >= minimum ? weights.exact(value) : 0.0;
  double quad = weight + __shfl_xor_sync(kFullMask, weight, 1);
  quad += __shfl_xor_sync(kFullMask, quad, 2);
  Arrival mine = Arrival::none();
  if (weight > 0) mine = arrival(token, quad, weight, draws, lane);
  return first_of_warp(mine);
}

// The token that arrives first in a batch. By one warp, for all its lanes: both heats by approximate keys, exactly if those leave a doubt.
template <class T, class Row, class Weights>
WL_DEVICE int winner_of_batch(const Row& row, int batch, float minimum, const Weights& weights, const Draws& draws) {
  constexpr int kWidth = kVecWidth<T>;
  const int lane = lane_id();
  const int token = (batch + lane / kWidth * kBatchStep<T>) * kWidth + lane % kWidth, quad = token / kQuad;
  const bool inside = lane < kBatch * kWidth && token < row.vocab;
  const float value = inside ? Weights::value(to_float(row.load_token(token))) : negative_infinity();
  const float weight = inside && value >= minimum ? weights.approximate(value) : 0.0f;
  float sum = weight + __shfl_xor_sync(kFullMask, weight, 1);
  sum += __shfl_xor_sync(kFullMask, sum, 2);
  const float quad_key = log2_approx_full(sum) + log2_rate(draws.word(Draws::quad_block(quad), quad / 32 % 4));
  const float best_quad = warp_max(sum > 0 ? quad_key : negative_infinity());
  const bool in_quad = sum > 0 && quad_key >= best_quad - kKeyError;
  const uint32_t quads = __ballot_sync(kFullMask, in_quad);
  const bool takes_part = in_quad && weight > 0;
  float key = negative_infinity();
  if (takes_part) key = log2_approx_full(weight) + log2_rate(draws.word(Draws::token_block(token), token % kQuad));
  const float best = warp_max(key);
  const uint32_t tokens = __ballot_sync(kFullMask, takes_part && key >= best - kKeyError);
  if (__popc(quads) == kQuad && __popc(tokens) == 1) return __shfl_sync(kFullMask, token, __ffs(tokens) - 1);
  return first_of_batch<T>(row, batch, minimum, weights, draws).token;
}

// Leaves `state` with the batch that holds the winner, where approximate keys did not tell. For all threads of the row's
// blocks; `scan` is the thread's own.
template <class T, class Share, class Weights>
WL_DEVICE void settle_contenders(RaceState& state, const RowScan<Weights>& scan, Share& share, RowReduce& reduce,
                                 float minimum, const Draws& draws) {
  if (state.contenders == 1) return;
  const Weights weights(state.reference, scan.scale);
  const float shift = Weights::kFromLogits ? (scan.reference - state.reference) * scan.scale : 0.0f;
  const float worst = state.best - 2 * kKeyError - shift;
  Arrival first = Arrival::none();
  const auto enter = [&](int batch) {
    const Arrival arrival = first_of_batch<T>(share.row, batch, minimum, weights, draws);
    if (arrival.quad_time < first.quad_time) first = {arrival.quad_time, arrival.token_time, arrival.token, batch};
  };
  // The warp takes the contenders of its lanes in turn: a lane's best batch, or all if it has several to offer.
  const uint32_t several = __ballot_sync(kFullMask, scan.contest.second >= worst);
  for (uint32_t left = __ballot_sync(kFullMask, scan.contest.best >= worst); left; left &= left - 1) {
    const int lane = __ffs(left) - 1;
    const int best = __shfl_sync(kFullMask, scan.contest.batch, lane);
    share.for_batches(int(threadIdx.x) - lane_id() + lane, [&](int batch) {
      if (batch == best || several >> lane & 1) enter(batch);
    });
  }
  first = first_of_warp(reduce.of_warps(first));
  state.batch = first_of_warp(reduce.exchange(first)).place;
}

}  // namespace warploom::sampling
