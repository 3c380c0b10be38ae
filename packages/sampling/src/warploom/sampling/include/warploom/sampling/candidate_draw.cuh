// A draw from a row's candidates by one block: what `draw_filtered.cuh` does over a row, for a few tokens.
//
// No sorting: every candidate is compared with every other, by as many threads as there are for each.
#pragma once

#include "warploom/sampling/candidates.cuh"
#include "warploom/sampling/row_race.cuh"

namespace warploom::sampling {

struct UnitSum {
  uint64_t units;
  WL_DEVICE static UnitSum none() { return {0}; }
  WL_DEVICE void merge(const UnitSum& other) { units += other.units; }
};

// A candidate of a quad that may be the first.
struct Pick {
  static constexpr int kMost = 8;
  double quad_weight;
  int place;
};

// Of one candidate.
struct CandidateFacts {
  uint64_t above;  // units of the candidates of larger values
  int larger;      // and how many there are
  uint32_t partners;  // others of the same quad: their places + 1, ten bits each

  WL_DEVICE static CandidateFacts none() { return {0, 0, 0}; }
};

// In the memory that the row's share was in.
struct CandidateScratch {
  uint64_t keys[CandidateStorage::kCapacity];
  uint64_t units[CandidateStorage::kCapacity];
  double weights[CandidateStorage::kCapacity];
  CandidateFacts facts[CandidateStorage::kCapacity];
  Pick picks[Pick::kMost];
  int pick_count;
};

// What a round comes to: the place of the winner, -1 if that can't be said, and the units that top_p is a share of.
struct CandidateRound {
  int place;
  uint64_t units;
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
      all.units[i] = weights.units(value(i), weight);
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

  // The kept weight of a candidate's quad.
  WL_DEVICE double quad_weight(int i, float minimum) const {
    double low = 0.0, high = 0.0;  // halves of the quad
    const auto add = [&](int j) {
      const bool upper = token(j) % kQuad >= 2;
      low += upper ? 0.0 : all.weights[j];
      high += upper ? all.weights[j] : 0.0;
    };
    add(i);
#pragma unroll 1
    for (uint32_t others = all.facts[i].partners; others; others >>= 10) {
      const int j = int(others & 1023) - 1;
      if (value(j) >= minimum) add(j);
    }
    return low + high;
  }
  // Calls visitor(i) for this thread's candidates of at least `minimum`.
  template <class Visitor>
  WL_DEVICE void visit(float minimum, Visitor&& visitor) const {
    if (!leads()) return;
#pragma unroll 1
    for (int i = own(); i < count; i += kThreads) {
      if (value(i) >= minimum) visitor(i);
    }
  }

  // The draw among values of at least `minimum`, and the units of those of at least `base`.
  WL_DEVICE CandidateRound round(float minimum, float base, const Draws& draws) {
    const int place = first_of(pick(minimum, draws), draws);
    uint64_t units = 0;
    visit(base, [&](int i) { units += all.units[i]; });
    units = warp_merge(reduce.of_warps(UnitSum{warp_reduce(units, Sum())})).units;
    ++reduce.round;
    return {place, units};
  }

  WL_DEVICE float quad_key(int i, float minimum, const Draws& draws) const {
    const int quad = token(i) / kQuad;
    return log2_approx_full(float(quad_weight(i, minimum))) + log2_rate(draws.word(Draws::quad_block(quad), quad / 32 % 4));
  }

  // The first heat by approximate keys: candidates whose quads may be the first. Their number.
  WL_DEVICE int pick(float minimum, const Draws& draws) {
    if (threadIdx.x == 0) all.pick_count = 0;
    float best = negative_infinity();
    visit(minimum, [&](int i) { best = fmaxf(best, quad_key(i, minimum, draws)); });
    const float best_of_all = warp_max(reduce.of_warps(RowMaximum{warp_max(best)}).value);
    ++reduce.round;
    if (best >= best_of_all - kKeyError) {
      visit(minimum, [&](int i) {
        if (quad_key(i, minimum, draws) < best_of_all - kKeyError) return;
        const int at = atomicAdd(&all.pick_count, 1);
        if (at < Pick::kMost) all.picks[at] = {quad_weight(i, minimum), i};
      });
    }
    __syncthreads();
    return all.pick_count;
  }

  // The place of the winner among the picks, by every warp: by approximate keys of the second heat, exactly if those leave a
  // doubt. -1 if there are too many.
  WL_DEVICE int first_of(int picks, const Draws& draws) const {
    if (picks < 1 || picks > Pick::kMost) return -1;
    const bool has_pick = lane_id() < picks;
    const Pick mine = all.picks[has_pick ? lane_id() : 0];
    const int token = this->token(mine.place), quad = token / kQuad;
    const uint32_t word = draws.word(Draws::token_block(token), token % kQuad);
    const float key = log2_approx_full(float(all.weights[mine.place])) + log2_rate(word);
    const float best = warp_max(has_pick ? key : negative_infinity());
    const uint32_t near = __ballot_sync(kFullMask, has_pick && key >= best - kKeyError);
    const bool one_quad = __all_sync(kFullMask, quad == __shfl_sync(kFullMask, quad, 0));
    if (one_quad && __popc(near) == 1) return __shfl_sync(kFullMask, mine.place, __ffs(near) - 1);
    Arrival arrival_of_mine = Arrival::none();
    if (has_pick) arrival_of_mine = arrival(token, mine.quad_weight, all.weights[mine.place], draws, mine.place);
    return first_of_warp(arrival_of_mine).place;
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
