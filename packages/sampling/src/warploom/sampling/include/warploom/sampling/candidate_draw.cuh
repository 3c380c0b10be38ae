// A draw from a row's candidates by one block: what `draw_filtered.cuh` does over a row, for a few tokens.
//
// No sorting: every candidate is compared with every other, by as many threads as there are for each. Then each finds when it
// arrives, approximately, and those that may be the first of all look again, exactly.
#pragma once

#include "warploom/sampling/candidates.cuh"
#include "warploom/sampling/row_race.cuh"

namespace warploom::sampling {

struct UnitSum {
  uint64_t units;
  WL_DEVICE static UnitSum none() { return {0}; }
  WL_DEVICE void merge(const UnitSum& other) { units += other.units; }
};

// Of one candidate.
struct CandidateFacts {
  uint64_t above;  // units of the candidates of larger values
  int larger;      // and how many there are
  uint32_t partners;  // others of the same quad: their places + 1, ten bits each

  WL_DEVICE static CandidateFacts none() { return {0, 0, 0}; }
};

constexpr int kMostPicks = 8;
// Of a number of a race, relatively: more than an exponential number, a weight and their quotient are wrong by.
constexpr float kTimeError = 0x1p-10f;

// In the memory that the row's share was in.
struct CandidateScratch {
  uint64_t keys[CandidateStorage::kCapacity];
  uint64_t units[CandidateStorage::kCapacity];
  double weights[CandidateStorage::kCapacity];
  CandidateFacts facts[CandidateStorage::kCapacity];
  int picks[kMostPicks];  // places of candidates that may arrive first
  int pick_count;
};

// The time of an arrival.
struct TimeBounds {
  float least;
  float most;
};

template <class Weights, int kThreads>
struct CandidateDraw {
  CandidateScratch& all;
  int count;
  int log2_ways;  // 2**log2_ways neighbouring threads share a candidate
  RowReduce reduce;

  WL_DEVICE CandidateDraw(CandidateScratch& all, int count, RowReduceStorage& storage, const Weights& weights)
      : all(all), count(count), log2_ways(0), reduce(storage, 0, 1) {
    for (int i = threadIdx.x; i < count; i += kThreads) {
      const double weight = weights.exact(value(i));
      all.weights[i] = weight;
      all.units[i] = weights.units(value(i));
    }
    while (count << (log2_ways + 1) <= kThreads && log2_ways < 5) ++log2_ways;
    __syncthreads();
    // Whole warps, because the threads that share a candidate shuffle.
#pragma unroll 1
    for (int i = own(); i - own() < count; i += kThreads) {
      const CandidateFacts facts = compare(i);
      if (i < count && leads()) all.facts[i] = facts;
    }
  }

  // The first candidate of this thread; the others are kThreads apart, where every thread has some of its own.
  WL_DEVICE int own() const { return int(threadIdx.x) >> log2_ways; }
  WL_DEVICE bool leads() const { return (int(threadIdx.x) & ((1 << log2_ways) - 1)) == 0; }
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

  WL_DEVICE int token(int i) const { return candidate_token(all.keys[i]); }

  // Calls visitor(i) for this thread's candidates of at least `minimum`.
  template <class Visitor>
  WL_DEVICE void visit(float minimum, Visitor&& visitor) const {
    if (!leads()) return;
#pragma unroll 1
    for (int i = own(); i < count; i += kThreads) {
      if (value(i) >= minimum) visitor(i);
    }
  }

  // The units of values of at least `base`.
  WL_DEVICE uint64_t units_from(float base) {
    uint64_t units = 0;
    visit(base, [&](int i) { units += all.units[i]; });
    units = warp_merge(reduce.of_warps(UnitSum{warp_reduce(units, Sum())})).units;
    ++reduce.round;
    return units;
  }

  // The place of the first to arrive of at least `eligible`, where values of at least `minimum` race; -1 if too many may be.
  WL_DEVICE int first(float minimum, float eligible, const Draws& draws) {
    if (threadIdx.x == 0) all.pick_count = 0;
    float soon = -negative_infinity();
    visit(eligible, [&](int i) { soon = fminf(soon, bounds(i, minimum, draws).most); });
    soon = least_of_block(soon);
    visit(eligible, [&](int i) {
      if (!(bounds(i, minimum, draws).least <= soon)) return;
      const int at = atomicAdd(&all.pick_count, 1);
      if (at < kMostPicks) all.picks[at] = i;
    });
    __syncthreads();
    const int picks = all.pick_count;
    if (picks < 1 || picks > kMostPicks) return -1;
    if (picks == 1) return all.picks[0];
    Arrival mine = Arrival::none();
    if (lane_id() < picks) mine = exact_arrival(all.picks[lane_id()], minimum, draws);
    return first_of_warp(mine).place;
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
  // Calls visitor(j) for a candidate and the others of its quad that race.
  template <class Visitor>
  WL_DEVICE void visit_quad(int i, float minimum, Visitor&& visitor) const {
    uint32_t others = all.facts[i].partners;
#pragma unroll 1
    for (int j = i; j >= 0; j = int(others & 1023) - 1, others >>= 10) {
      if (value(j) >= minimum) visitor(j);
    }
  }

  WL_DEVICE TimeBounds bounds(int i, float minimum, const Draws& draws) const {
    const int quad = token(i) / kQuad;
    const uint4 words = draws.words(Draws::token_block(token(i)));
    float sum = 0.0f, first = -negative_infinity(), mine = 0.0f;
    visit_quad(i, minimum, [&](int j) {
      const float weight = float(all.weights[j]), time = exponential(word_of(words, token(j) % kQuad)) / weight;
      sum += weight;
      first = fminf(first, time);
      if (j == i) mine = time;
    });
    const float of_quad = exponential(draws.word(Draws::quad_block(quad), quad / 32 % 4)) / sum;
    const float behind = mine > first ? mine - first : 0.0f, time = of_quad + behind;
    const float error = kTimeError * (of_quad + (behind > 0 ? mine + first : 0.0f));
    return {time - error, time + error};
  }

  // As one number of the two heats.
  WL_DEVICE Arrival exact_arrival(int i, float minimum, const Draws& draws) const {
    double low = 0.0, high = 0.0, first = Arrival::none().token_time;  // halves of the quad
    visit_quad(i, minimum, [&](int j) {
      const bool upper = token(j) % kQuad >= 2;
      low += upper ? 0.0 : all.weights[j];
      high += upper ? all.weights[j] : 0.0;
      first = fmin(first, time_of_token(j, draws));
    });
    const int quad = token(i) / kQuad;
    const double of_quad = arrival_time(draws, Draws::quad_block(quad), quad / 32 % 4, low + high);
    const double mine = time_of_token(i, draws);
    return {of_quad + (mine > first ? mine - first : 0.0), 0.0, token(i), i};
  }

  WL_DEVICE double time_of_token(int i, const Draws& draws) const {
    return arrival_time(draws, Draws::token_block(token(i)), token(i) % kQuad, all.weights[i]);
  }

  // The smallest value of this thread's candidates for which keep(its facts).
  template <class Keep>
  WL_DEVICE float least_of_thread(Keep keep) const {
    float least = -negative_infinity();
    visit(negative_infinity(), [&](int i) { least = keep(all.facts[i]) ? fminf(least, value(i)) : least; });
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
