// A thread's pass over its part of a row: mass and race of the tokens whose values are at least a minimum.
#pragma once

#include "warploom/sampling/race.cuh"

namespace warploom::sampling {

template <class T>
WL_DEVICE void values_of(const Packed& packed, float (&values)[kVecWidth<T>], bool from_logits) {
  unpack<T>(packed, values);
  if (from_logits) return;
#pragma unroll
  for (float& value : values) value = ProbWeights::value(value);
}

// Logits weigh 1 at the reference, one of the row's larger logits: its maximum would cost another pass, and the race does
// without it; NaN and infinite logits make the best key NaN or infinite. Of probabilities the reference is the largest, or NaN.
template <class Weights>
struct RowScan {
  float reference;
  float scale;
  float mass;
  Contest contest;

  WL_DEVICE static float lowest() { return Weights::kFromLogits ? -kLargestFinite : 0.0f; }

  WL_DEVICE explicit RowScan(float scale, float reference = lowest())
      : reference(reference), scale(scale), mass(0.0f), contest(Contest::none()) {}

  WL_DEVICE Weights weights() const { return {reference, scale}; }

  // Groups beyond the row read as -inf and change nothing. With kFiltered tokens below `minimum` do not take part.
  template <class T, bool kFiltered>
  WL_DEVICE void enter(const Packed (&groups)[kBatch], int batch, const Draws& draws, float minimum) {
    float rates[kBatch * kQuadsOfGroup<T>];
    log2_rates<T>(batch, draws, rates);
    float sum;
    float key = weigh<T, kFiltered>(groups, rates, minimum, sum);
    if (Weights::kFromLogits && key > kLargestKey) {
      raise_reference<T>(groups);
      key = weigh<T, kFiltered>(groups, rates, minimum, sum);
    }
    contest.enter(key, batch);
    mass += sum;
  }

 private:
  // A weight of 1 has a key of 34 at most. Every move of the reference rounds what there is, so it is seldom moved.
  static constexpr float kLargestKey = 40.0f;

  // The best key of the quads, and their mass.
  template <class T, bool kFiltered>
  WL_DEVICE float weigh(const Packed (&groups)[kBatch], const float (&rates)[kBatch * kQuadsOfGroup<T>], float minimum,
                        float& sum) {
    const Weights weights(reference, scale);
    float best = negative_infinity();
    sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      float values[kVecWidth<T>];
      values_of<T>(groups[i], values, Weights::kFromLogits);
#pragma unroll
      for (int j = 0; j < kQuadsOfGroup<T>; ++j) {
        float weight[kQuad];
#pragma unroll
        for (int t = 0; t < kQuad; ++t) {
          const float value = values[j * kQuad + t];
          if (!Weights::kFromLogits) reference = max_or_nan(reference, value);
          weight[t] = weights.approximate(value);
          if (kFiltered && value < minimum) weight[t] = 0.0f;
        }
        const float quad = (weight[0] + weight[1]) + (weight[2] + weight[3]);
        best = max_or_nan(best, log2_approx_full(quad) + rates[i * kQuadsOfGroup<T> + j]);
        sum += quad;
      }
    }
    return best;
  }

  template <class T>
  WL_DEVICE void raise_reference(const Packed (&groups)[kBatch]) {
    float to = reference;
#pragma unroll
    for (const Packed& packed : groups) {
      float values[kVecWidth<T>];
      unpack<T>(packed, values);
#pragma unroll
      for (float value : values) to = fmaxf(to, value);
    }
    const float shift = (reference - to) * scale;
    mass *= exp2_approx(shift);
    contest.best += shift;
    contest.second += shift;
    reference = to;
  }
};

}  // namespace warploom::sampling
