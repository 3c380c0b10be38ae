// A draw from a row's candidates, exact throughout, by one block: what `draw_filtered.cuh` does over the row, for a few tokens.
#pragma once

#include "warploom/sampling/candidates.cuh"
#include "warploom/sampling/row_race.cuh"

namespace warploom::sampling {

constexpr int kTopPRounds = 7;

// In the memory that the row's share was in.
struct CandidateWeights {
  double weights[CandidateStorage::kCapacity];
};

template <class Weights, int kThreads>
struct CandidateDraw {
  static constexpr int kOwn = CandidateStorage::kCapacity / kThreads;

  const uint64_t* keys;  // in descending order
  int count;
  double* weights;
  uint64_t* warps;  // [warps], and a key behind them
  RowReduce reduce;

  WL_DEVICE CandidateDraw(CandidateStorage& storage, int count, double* weights, RowReduceStorage& reduce_storage,
                          uint64_t* warps, const Weights& of)
      : keys(storage.keys), count(count), weights(weights), warps(warps), reduce(reduce_storage, 0, 1) {
    for (int i = threadIdx.x; i < count; i += kThreads) weights[i] = of.exact(value(i));
    __syncthreads();
  }

  WL_DEVICE float value(int i) const { return candidate_value(keys[i]); }

  // Units of all of at least `minimum`.
  WL_DEVICE uint64_t units(float minimum, const Weights& of) {
    UnitSums sums = UnitSums::none();
    for (int i = threadIdx.x; i < count; i += kThreads) sums.total += value(i) >= minimum ? of.units(value(i)) : 0;
    return reduce(sums).total;
  }

  // The largest value that with those above it reaches `target` units; -inf if all do not.
  WL_DEVICE float reaching(double target, const Weights& of) {
    uint64_t own[kOwn], sum = 0;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int at = int(threadIdx.x) * kOwn + i;
      own[i] = at < count ? of.units(value(at)) : 0;
      sum += own[i];
    }
    uint64_t* key = warps + kThreads / kWarpSize;
    __syncthreads();
    if (threadIdx.x == 0) *key = 0;
    uint64_t before = sum_before<kThreads>(sum, warps);  // has a barrier
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int at = int(threadIdx.x) * kOwn + i;
      if (at < count && double(before) < target && double(before + own[i]) >= target) *key = keys[at];
      before += own[i];
    }
    __syncthreads();
    return *key ? candidate_value(*key) : negative_infinity();
  }

  // The weight of candidate i's quad, of those of at least `minimum`.
  WL_DEVICE double quad_weight(int i, float minimum) const {
    const int quad = candidate_token(keys[i]) / kQuad;
    double halves[2] = {0.0, 0.0};
    for (int j = 0; j < count && value(j) >= minimum; ++j) {
      const int token = candidate_token(keys[j]);
      if (token / kQuad == quad) halves[token % kQuad / 2] += weights[j];
    }
    return halves[0] + halves[1];
  }

  // Both heats among those of at least `minimum`.
  WL_DEVICE Winner race(float minimum, const Draws& draws) {
    Arrival first = Arrival::none();
#pragma unroll 1
    for (int i = threadIdx.x; i < count && value(i) >= minimum; i += kThreads) {
      const int quad = candidate_token(keys[i]) / kQuad;
      first.merge({exponential_exact(draws.quad_word(quad)) / quad_weight(i, minimum), quad, 0});
    }
    const int quad = reduce(first).index;
    Arrival second = Arrival::none();
#pragma unroll 1
    for (int i = threadIdx.x; i < count && value(i) >= minimum; i += kThreads) {
      const int token = candidate_token(keys[i]);
      if (token / kQuad == quad) second.merge({exponential_exact(draws.token_word(token)) / weights[i], token, i});
    }
    second = reduce(second);
    return {second.index, value(second.place)};
  }

  // As the rounds of a row go: `nucleus` is the smallest value inside.
  WL_DEVICE int draw(float minimum, float nucleus, Draws draws) {
    for (int round = 0;; ++round) {
      const Winner winner = race(round < kTopPRounds ? minimum : fmaxf(minimum, nucleus), draws);
      if (winner.value >= nucleus) return winner.token;
      minimum = next_above(winner.value);
      draws.next_round();
    }
  }
};

}  // namespace warploom::sampling
