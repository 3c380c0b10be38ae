// A draw from a row's candidates, exact throughout, by one block: what `draw_filtered.cuh` does over the row, for a few tokens.
//
// No sorting: every candidate is compared with every other, which takes the block less time than the steps of a sort.
#pragma once

#include "warploom/sampling/candidates.cuh"
#include "warploom/sampling/row_race.cuh"

namespace warploom::sampling {

constexpr int kTopPRounds = 7;

// In the memory that the row's share was in.
struct CandidateScratch {
  uint64_t keys[CandidateStorage::kCapacity];
  uint64_t units[CandidateStorage::kCapacity];
  double weights[CandidateStorage::kCapacity];
};

struct UnitTotal {
  uint64_t units;

  WL_DEVICE static UnitTotal none() { return {0}; }
  WL_DEVICE void merge(const UnitTotal& other) { units += other.units; }
};

template <class Weights, int kThreads>
struct CandidateDraw {
  static constexpr int kOwn = CandidateStorage::kCapacity / kThreads;

  const CandidateScratch& all;
  int count;
  RowReduce reduce;
  uint64_t above[kOwn];  // units of the candidates of larger values
  int larger[kOwn];      // and how many there are
  int partners[kOwn];    // others of the same quad: three of 10 bits, 1 more than their places

  WL_DEVICE CandidateDraw(CandidateScratch& scratch, int count, RowReduceStorage& reduce_storage, const Weights& weights)
      : all(scratch), count(count), reduce(reduce_storage, 0, 1) {
    for (int i = threadIdx.x; i < count; i += kThreads) {
      scratch.units[i] = weights.units(value(i));
      scratch.weights[i] = weights.exact(value(i));
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < kOwn; ++n) compare(n);
  }

  WL_DEVICE int own(int n) const { return int(threadIdx.x) + n * kThreads; }
  WL_DEVICE float value(int i) const { return candidate_value(all.keys[i]); }

  WL_DEVICE void compare(int n) {
    above[n] = 0, larger[n] = 0, partners[n] = 0;
    const int i = own(n);
    if (i >= count) return;
    const uint32_t key = uint32_t(all.keys[i] >> 32);
    const int quad = candidate_token(all.keys[i]) / kQuad;
    for (int j = 0; j < count; ++j) {
      const uint64_t other = all.keys[j];
      const bool is_larger = uint32_t(other >> 32) > key;
      larger[n] += is_larger;
      above[n] += is_larger ? all.units[j] : 0;
      if (candidate_token(other) / kQuad == quad && j != i) partners[n] = partners[n] << 10 | (j + 1);
    }
  }

  // The k-th largest value, if there are as many.
  WL_DEVICE float largest_but(int k) {
    RowMinimum least = RowMinimum::none();
#pragma unroll
    for (int n = 0; n < kOwn; ++n) {
      if (own(n) < count && larger[n] < k) least.value = fminf(least.value, value(own(n)));
    }
    return count >= k ? reduce(least).value : negative_infinity();
  }

  // Units of all of at least `minimum`.
  WL_DEVICE uint64_t units(float minimum) {
    UnitTotal sum = UnitTotal::none();
#pragma unroll
    for (int n = 0; n < kOwn; ++n) sum.units += own(n) < count && value(own(n)) >= minimum ? all.units[own(n)] : 0;
    return reduce(sum).units;
  }

  // The smallest value with less than `target` units above it.
  WL_DEVICE float reaching(double target) {
    RowMinimum least = RowMinimum::none();
#pragma unroll
    for (int n = 0; n < kOwn; ++n) {
      if (own(n) < count && double(above[n]) < target) least.value = fminf(least.value, value(own(n)));
    }
    return reduce(least).value;
  }

  // Both heats among those of at least `minimum`.
  WL_DEVICE Winner race(float minimum, const Draws& draws) {
    Arrival first = Arrival::none();
#pragma unroll 1
    for (int n = 0; n < kOwn; ++n) {
      const int i = own(n);
      if (i >= count || !(value(i) >= minimum)) continue;
      const int token = candidate_token(all.keys[i]);
      double weight[2] = {};  // of the halves of the quad
      weight[token % kQuad / 2] += all.weights[i];
      for (int others = partners[n]; others; others >>= 10) {
        const int j = (others & 1023) - 1;
        if (value(j) >= minimum) weight[candidate_token(all.keys[j]) % kQuad / 2] += all.weights[j];
      }
      first.merge(arrival(token, weight[0] + weight[1], all.weights[i], draws, i));
    }
    first = reduce(first);
    return {first.token, value(first.place)};
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
