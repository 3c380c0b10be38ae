// A draw from a row's candidates, exact throughout, by one block: what `draw_filtered.cuh` does over a row, for a few tokens.
//
// No sorting: every candidate is compared with every other, by as many threads as there are for each.
#pragma once

#include "warploom/sampling/candidates.cuh"
#include "warploom/sampling/row_race.cuh"

namespace warploom::sampling {

// In the memory that the row's share was in.
struct CandidateScratch {
  uint64_t keys[CandidateStorage::kCapacity];
  uint64_t units[CandidateStorage::kCapacity];
  double weights[CandidateStorage::kCapacity];
};

// Of one candidate.
struct CandidateFacts {
  uint64_t above;  // units of the candidates of larger values
  int larger;      // and how many there are
  uint32_t partners;  // others of the same quad: their places + 1, ten bits each

  WL_DEVICE static CandidateFacts none() { return {0, 0, 0}; }
};

// What a round comes to.
struct CandidateRound {
  Arrival first;
  uint64_t units;  // that top_p is a share of

  WL_DEVICE static CandidateRound none() { return {Arrival::none(), 0}; }
};

template <class Weights, int kThreads>
struct CandidateDraw {
  static constexpr int kOwn = CandidateStorage::kCapacity / kThreads;

  CandidateScratch& all;
  int count;
  int log2_ways;  // 2**log2_ways neighbouring threads share a candidate
  CandidateFacts facts[kOwn];
  RowReduce reduce;

  WL_DEVICE CandidateDraw(CandidateScratch& all, int count, RowReduceStorage& storage, const Weights& weights)
      : all(all), count(count), log2_ways(0), reduce(storage, 0, 1) {
    for (int i = threadIdx.x; i < count; i += kThreads) {
      all.units[i] = weights.units(value(i));
      all.weights[i] = weights.exact(value(i));
    }
    while (count << (log2_ways + 1) <= kThreads && log2_ways < 5) ++log2_ways;
    __syncthreads();
#pragma unroll
    for (int n = 0; n < kOwn; ++n) facts[n] = n == 0 || count > kThreads ? compare(own(n)) : CandidateFacts::none();
  }

  WL_DEVICE int own(int n) const { return (int(threadIdx.x) >> log2_ways) + n * kThreads; }
  WL_DEVICE float value(int i) const { return candidate_value(all.keys[i]); }

  WL_DEVICE CandidateFacts compare(int i) const {
    const uint64_t mine = all.keys[min(i, count - 1)];
    const uint32_t key = uint32_t(mine >> 32);
    const int quad = candidate_token(mine) / kQuad, ways = 1 << log2_ways;
    CandidateFacts result = CandidateFacts::none();
#pragma unroll 4
    for (int j = int(threadIdx.x) & (ways - 1); j < count; j += ways) {
      const uint64_t other = all.keys[j], units = all.units[j];
      const bool is_larger = uint32_t(other >> 32) > key;
      result.larger += is_larger;
      result.above += is_larger ? units : 0;
      const bool is_partner = candidate_token(other) / kQuad == quad && other != mine;
      result.partners = is_partner ? result.partners << 10 | uint32_t(j + 1) : result.partners;
    }
    for (int offset = 1; offset < ways; offset *= 2) {
      result.larger += __shfl_xor_sync(kFullMask, result.larger, offset);
      result.above += __shfl_xor_sync(kFullMask, result.above, offset);
      uint32_t others = __shfl_xor_sync(kFullMask, result.partners, offset);
      for (; others; others >>= 10) result.partners = result.partners << 10 | (others & 1023);
    }
    return result;
  }

  // Arrival of candidate i among those for which kept(place, its facts). The threads that share it divide the two heats.
  template <class Kept>
  WL_DEVICE Arrival arrival_of(int i, const CandidateFacts& mine, const Draws& draws, Kept kept) const {
    const int token = candidate_token(all.keys[i]);
    const bool second = token % kQuad >= 2;
    double halves[2] = {second ? 0.0 : all.weights[i], second ? all.weights[i] : 0.0};  // of the quad
    for (uint32_t others = mine.partners; others; others >>= 10) {
      const int j = int(others & 1023) - 1;
      if (!kept(value(j))) continue;
      (candidate_token(all.keys[j]) % kQuad >= 2 ? halves[1] : halves[0]) += all.weights[j];
    }
    return arrival(token, halves[0] + halves[1], all.weights[i], draws, i);
  }

  // The draw among values of at least `minimum`, and the units of those of at least `base`.
  WL_DEVICE CandidateRound round(float minimum, float base, const Draws& draws) {
    CandidateRound mine = CandidateRound::none();
    const bool leads = (int(threadIdx.x) & ((1 << log2_ways) - 1)) == 0;
#pragma unroll
    for (int n = 0; n < kOwn; ++n) {
      const int i = own(n);
      if (i >= count || !leads) continue;
      if (value(i) >= base) mine.units += all.units[i];
      if (!(value(i) >= minimum)) continue;
      const Arrival other = arrival_of(i, facts[n], draws, [=](float value) { return value >= minimum; });
      if (other.quad_time < mine.first.quad_time ||
          (other.quad_time == mine.first.quad_time && other.token_time < mine.first.token_time)) {
        mine.first = other;
      }
    }
    mine.first = first_of_warp(mine.first);
    mine.units = warp_reduce(mine.units, Sum());
    mine = reduce.of_warps(mine);
    mine.first = first_of_warp(mine.first);
    mine.units = warp_reduce(mine.units, Sum());
    ++reduce.round;
    return mine;
  }

  // The k-th largest value, if there are as many.
  WL_DEVICE float largest_but(int k) {
    const float least = least_of_thread([=](const CandidateFacts& of) { return of.larger < k; });
    return count < k ? negative_infinity() : least_of_block(least);
  }

  // The smallest value with less than `target` units above it.
  WL_DEVICE float reaching(double target) {
    return least_of_block(least_of_thread([=](const CandidateFacts& of) { return double(of.above) < target; }));
  }

 private:
  // The smallest value of this thread's candidates for which keep(its facts).
  template <class Keep>
  WL_DEVICE float least_of_thread(Keep keep) const {
    float least = -negative_infinity();
#pragma unroll
    for (int n = 0; n < kOwn; ++n) {
      if (own(n) < count && keep(facts[n])) least = fminf(least, value(own(n)));
    }
    return least;
  }

  WL_DEVICE float least_of_block(float least) {
    least = -warp_max(-least);
    least = -warp_max(-reduce.of_warps(RowMinimum{least}).value);
    ++reduce.round;
    return least;
  }
};

}  // namespace warploom::sampling
