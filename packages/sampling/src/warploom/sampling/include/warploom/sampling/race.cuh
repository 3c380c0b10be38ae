// The draw: an exponential race in two heats. First the quads, four consecutive tokens each: quad q arrives at E1[q] / weight
// of its tokens. Then its tokens, of which the first arrives with it. `warploom.sampling.steps` has the definition.
//
// All quads race by approximate keys log2(weight / E1) in float32, of which a thread keeps the best; quads whose keys are
// within their error of the best are then looked at exactly, in float64.
#pragma once

#include "warploom/philox.cuh"
#include "warploom/sampling/source_row.cuh"
#include "warploom/sampling/weights.cuh"

namespace warploom::sampling {

// More than twice the error of a key: 1.2e-4 of the logarithm of an exponential number (of 2**-9, smaller ones go by their
// series), and 1e-5 of a weight of up to 2**40 or down to 2**-40.
constexpr float kKeyError = 0x1p-11f;

constexpr int kQuad = 4;
constexpr int kBatch = 4;                            // groups that a thread takes at once: one random word each
constexpr uint32_t kSecondHeat = 1u << 30;           // counter blocks of the second heat start here
template <class T>
constexpr int kQuadsOfGroup = kVecWidth<T> / kQuad;
template <class T>
constexpr int kBatchStep = 32 / kQuadsOfGroup<T>;    // between the groups of a batch, whose quads share blocks of words

WL_DEVICE uint32_t word_of(const uint4& four, int place) {
  return place < 2 ? (place ? four.y : four.x) : (place == 2 ? four.z : four.w);
}

// The random numbers of an output row.
struct Draws {
  uint64_t seed;
  uint64_t offset;
  uint32_t row;

  WL_DEVICE uint4 words(uint32_t block) const { return philox_words(seed, offset, row, block); }
  WL_DEVICE uint32_t word(uint32_t block, int place) const { return word_of(words(block), place); }
  WL_DEVICE static uint32_t quad_block(int quad) { return uint32_t(quad / 128 * 32 + quad % 32); }
  WL_DEVICE static uint32_t token_block(int token) { return kSecondHeat + uint32_t(token / kQuad); }
};

// First group of the batch that a thread takes as number `unit` of a row, or of a part of it.
template <class T>
WL_DEVICE int batch_of(int unit) {
  constexpr int kStep = kBatchStep<T>;
  return unit / kStep * (kBatch * kStep) + unit % kStep;
}
// Batches that have a group of the first `groups`.
template <class T>
WL_DEVICE int batch_count(int groups) {
  constexpr int kStep = kBatchStep<T>;
  return groups / (kBatch * kStep) * kStep + min(groups % (kBatch * kStep), kStep);
}

// Exponential numbers times log2(e), of inverted words. Where u is small the logarithm of 1 - u cancels, and its series takes
// over.
constexpr uint32_t kSmallWords = ~(1u << 23);
WL_DEVICE float exponential_by_logarithm(uint32_t inverse) {
  return -log2_approx(fmaf(float(inverse), 0x1p-32f, 0x1p-33f));
}
WL_DEVICE float exponential_by_series(uint32_t inverse) {
  const float u = fmaf(float(~inverse), 0x1p-32f, 0x1p-33f);
  return u * fmaf(u, kLog2e / 2, kLog2e);
}

// -log2 of the exponential numbers of a batch's quads, plus a constant; quad j of group i is number i * kQuadsOfGroup + j.
// E = -log1p(-u), u = (word + 0.5) * 2**-32.
template <class T>
WL_DEVICE void log2_rates(int batch, const Draws& draws, float (&result)[kBatch * kQuadsOfGroup<T>]) {
  constexpr int kQuads = kQuadsOfGroup<T>;
  constexpr int kTile = kBatch * kBatchStep<T>;
  uint32_t blocks[kQuads];
  uint4 words[kQuads];
#pragma unroll
  for (int j = 0; j < kQuads; ++j) blocks[j] = uint32_t(batch / kTile * 32 + batch % kTile * kQuads + j);
  philox_words(draws.seed, draws.offset, draws.row, blocks, words);

  uint32_t inverse[kBatch * kQuads];  // ~word; the last round of Philox takes half of these in
  uint32_t largest = 0;
#pragma unroll
  for (int n = 0; n < kBatch * kQuads; ++n) {
    const uint4& four = words[n % kQuads];
    const int i = n / kQuads;
    inverse[n] = ~(i == 0 ? four.x : i == 1 ? four.y : i == 2 ? four.z : four.w);
    largest = max(largest, inverse[n]);
    result[n] = exponential_by_logarithm(inverse[n]);
  }
  // One warp in four has such a number.
  if (largest > kSmallWords) {
#pragma unroll
    for (int n = 0; n < kBatch * kQuads; ++n) {
      if (inverse[n] > kSmallWords) result[n] = exponential_by_series(inverse[n]);
    }
  }
#pragma unroll
  for (float& x : result) x = -log2_approx(x);
}

// The same for one word.
WL_DEVICE float exponential(uint32_t word) {
  return ~word > kSmallWords ? exponential_by_series(~word) : exponential_by_logarithm(~word);
}
WL_DEVICE float log2_rate(uint32_t word) { return -log2_approx(exponential(word)); }

// In float64: what decides.
// 1 - u has 33 bits, so nothing is lost on the way to its logarithm.
WL_DEVICE double exponential_exact(uint32_t word) { return -log(1.0 - (double(word) + 0.5) * 0x1p-32); }

// When a token's quad arrives, and the token in its own heat: the race goes to the smallest, in this order.
struct Arrival {
  double quad_time;
  double token_time;
  int token;
  int place;  // where the caller has it

  WL_DEVICE static Arrival none() {
    const double never = __longlong_as_double(0x7ff0000000000000);
    return {never, never, 0x7fffffff, 0};
  }
};

// Lanes with the smallest of positive numbers, whose bits are in their order.
WL_DEVICE bool is_smallest(double x, bool takes_part) {
  const uint32_t high = takes_part ? uint32_t(__double2hiint(x)) : 0xffffffffu;
  const uint32_t least_high = __reduce_min_sync(kFullMask, high);
  takes_part = takes_part && high == least_high;
  const uint32_t low = takes_part ? uint32_t(__double2loint(x)) : 0xffffffffu;
  const uint32_t least_low = __reduce_min_sync(kFullMask, low);
  return takes_part && low == least_low;
}

// The first of a warp's arrivals, for all lanes.
WL_DEVICE Arrival first_of_warp(const Arrival& mine) {
  __syncwarp();  // unlike shuffles, these reductions do not gather lanes that a branch has parted
  bool first = is_smallest(mine.quad_time, true);
  first = is_smallest(mine.token_time, first);
  const int token = __reduce_min_sync(kFullMask, first ? mine.token : 0x7fffffff);
  const int lane = __ffs(__ballot_sync(kFullMask, first && mine.token == token)) - 1;
  Arrival result;
  result.quad_time = __shfl_sync(kFullMask, mine.quad_time, lane);
  result.token_time = __shfl_sync(kFullMask, mine.token_time, lane);
  result.token = token;
  result.place = __shfl_sync(kFullMask, mine.place, lane);
  return result;
}

// Not inline: long, and where it runs few tokens are looked at.
__device__ __noinline__ double arrival_time(Draws draws, uint32_t block, int place, double rate) {
  return exponential_exact(draws.word(block, place)) / rate;
}

// The arrival of a token, given the weights of its quad and its own.
__device__ __noinline__ Arrival arrival(int token, double quad_weight, double weight, Draws draws, int place) {
  const int quad = token / kQuad;
  return {exponential_exact(draws.word(Draws::quad_block(quad), quad / 32 % 4)) / quad_weight,
          exponential_exact(draws.word(Draws::token_block(token), token % kQuad)) / weight, token, place};
}

// The batches of one thread that may hold the winner of the first heat.
struct Contest {
  float best;    // key; NaN or infinite if a weight is
  float second;  // of other batches
  int batch;     // first group of the best one

  WL_DEVICE static Contest none() { return {negative_infinity(), negative_infinity(), 0}; }
  WL_DEVICE void enter(float key, int of_batch) {
    second = fmaxf(second, fminf(best, key));
    batch = key > best ? of_batch : batch;
    best = max_or_nan(best, key);
  }
};

}  // namespace warploom::sampling
