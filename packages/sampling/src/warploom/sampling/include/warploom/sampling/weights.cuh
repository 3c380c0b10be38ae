// What a token weighs: approximately in float32, exactly in float64, and in the integer units that decide about masses.
//
// Units are multiples of 2**-42 of the row's largest weight (of the next power of two for probabilities), rounded down; sums
// of them are exact in 64 bits, so they depend on no order and a row's outcome on no launch. `warploom.sampling.steps` has
// the definition, its torch reference computes the same.
#pragma once

#include "warploom/sampling/ordered.cuh"
#include "warploom/sampling/softmax_stats.cuh"

namespace warploom::sampling {

constexpr int kUnitBits = 42;

// Base-2 logarithm on the special-function unit.
WL_DEVICE float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// Of subnormal numbers too.
WL_DEVICE float log2_approx_full(float x) {
  float y;
  asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 2**n, where that is a normal number.
WL_DEVICE double power_of_two(int n) { return __hiloint2double((1023 + n) << 20, 0); }

// NaN if either is.
WL_DEVICE float max_or_nan(float a, float b) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}

// Not inline: long, at many places, and where it runs only a few tokens are looked at.
__device__ __noinline__ double exact_exp2(double x) { return exp2(x); }

// 2**(x + kUnitBits) rounded down, for x <= 0. In line, for passes over a row.
WL_DEVICE uint64_t exp2_units(double x) {
  constexpr double kTerms[] = {1.0, 0x1.62e42fefa39efp-1, 0x1.ebfbdff82c58fp-3, 0x1.c6b08d704a0c0p-5, 0x1.3b2ab6fba4e77p-7,
                               0x1.5d87fe78a6731p-10, 0x1.430912f86c787p-13, 0x1.ffcbfc588b0c7p-17, 0x1.62c0223a5c824p-20,
                               0x1.b5253d395e7c4p-24, 0x1.e4cf5158b8ecap-28, 0x1.e8cac7351bb25p-32, 0x1.c3bd650fc2986p-36,
                               0x1.816193166d0f9p-40};  // ln(2)**i / i!
  constexpr double kRound = 0x1.8p52;
  x = fmax(x, -64.0);
  const double whole = x + kRound, rest = x - (whole - kRound);
  double y = kTerms[13];
#pragma unroll
  for (int i = 12; i >= 0; --i) y = fma(y, rest, kTerms[i]);
  y *= power_of_two(kUnitBits + __double2loint(whole));
  return __double_as_longlong(__dadd_rd(y, 0x1p52)) & ((1ull << 52) - 1);
}

// Logits weigh 2**((value - maximum) * scale).
struct LogitWeights {
  static constexpr bool kFromLogits = true;
  static constexpr float kNothing = -kLargestFinite;  // or less: smaller than every value that can be drawn
  float maximum;  // of the row; 0 if it is -inf. The race takes any logit of about that size.
  float scale;    // log2(e) / temperature

  WL_DEVICE LogitWeights(float row_maximum, float scale)
      : maximum(row_maximum == negative_infinity() ? 0.0f : row_maximum), scale(scale) {}

  WL_DEVICE float reference() const { return maximum; }

  WL_DEVICE static float value(float source) { return source; }
  WL_DEVICE static float number(float source) { return source; }  // where there is no NaN
  WL_DEVICE static uint32_t key(float value) { return ordered_with_nan(value); }
  // How far a key is below `top`.
  WL_DEVICE static uint32_t offset(uint32_t top, float value) { return top - ordered_with_nan(value); }
  // Whether a row with this maximum (NaN if it has a NaN) and scale has a distribution.
  WL_DEVICE static bool valid(float row_maximum, float scale) {
    return fabsf(row_maximum) <= kLargestFinite && scale == scale;
  }

  WL_DEVICE float log2_weight(float value) const { return (value - maximum) * scale; }
  WL_DEVICE float approximate(float value) const { return exp2_approx(log2_weight(value)); }
  WL_DEVICE double exact(float value) const { return exact_exp2((double(value) - double(maximum)) * double(scale)); }
  WL_DEVICE double unit_scale() const { return double(1ull << kUnitBits); }  // from an approximate mass
  WL_DEVICE uint64_t units(float value) const {
    return exp2_units((double(value) - double(maximum)) * double(scale));
  }
};

// Probabilities weigh what they are.
struct ProbWeights {
  static constexpr bool kFromLogits = false;
  static constexpr float kNothing = 0.0f;
  int exponent;  // maximum < 2**exponent, at most twice as much

  WL_DEVICE ProbWeights(float row_maximum, float) {
    const uint32_t bits = __float_as_uint(row_maximum), field = bits >> 23;
    exponent = field ? int(field) - 126 : -117 - __clz(bits);
  }
  WL_DEVICE float reference() const { return 0.0f; }

  WL_DEVICE static float value(float source) { return source < 0 ? 0.0f : source; }  // NaN stays
  WL_DEVICE static float number(float source) { return fmaxf(source, 0.0f); }         // where there is none
  WL_DEVICE static uint32_t key(float value) { return __float_as_uint(value) | 0x80000000u; }  // ordered(), of what value() gives
  WL_DEVICE static uint32_t offset(uint32_t top, float value) { return (top & 0x7fffffffu) - __float_as_uint(value); }
  // Larger numbers count as infinite: sums of four must not overflow.
  WL_DEVICE static bool valid(float row_maximum, float) { return row_maximum > 0 && row_maximum <= 0x1p120f; }

  // A sum may overflow: no decision is made by it then.
  WL_DEVICE float approximate(float value) const { return value; }
  WL_DEVICE double exact(float value) const { return double(value); }
  WL_DEVICE double unit_scale() const { return power_of_two(kUnitBits - exponent); }
  WL_DEVICE uint64_t units(float value) const {
    const uint32_t bits = __float_as_uint(value);
    const int field = int(bits >> 23);
    const uint32_t mantissa = (bits & 0x7fffffu) | (field ? 0x800000u : 0u);
    // 22 in the octave of the maximum, less if that is subnormal, and -1 if it is the smallest number of all.
    const int shift = exponent + 148 - max(field, 1);
    return (uint64_t(mantissa) << 40 >> min(max(shift, 0), 63)) << (exponent == -148);
  }
};

// Sums of units over a thread's tokens: of all, and of those above something.
template <class Weights>
struct UnitTally;

template <>
struct UnitTally<LogitWeights> {
  const LogitWeights& weights;
  uint64_t total = 0, above = 0;

  WL_DEVICE explicit UnitTally(const LogitWeights& weights) : weights(weights) {}
  WL_DEVICE void add(float value, bool is_above) {
    const uint64_t units = weights.units(value);
    total += units;
    above += is_above ? units : 0;
  }
  WL_DEVICE void carry() {}
  WL_DEVICE uint64_t units_total() { return total; }
  WL_DEVICE uint64_t units_above() { return above; }
};

// In float64, where the units of a thousand tokens are exact: adding a large number rounds a probability down to units. A third
// of the instructions of `ProbWeights::units`.
template <>
struct UnitTally<ProbWeights> {
  const ProbWeights& weights;
  double large;
  double total = 0.0, above = 0.0;
  uint64_t carried_total = 0, carried_above = 0;
  int visits = 0;

  WL_DEVICE explicit UnitTally(const ProbWeights& weights)
      : weights(weights), large(power_of_two(52 - kUnitBits + weights.exponent)) {}
  WL_DEVICE void add(float value, bool is_above) {
    const double units = __dadd_rd(double(value), large) - large;
    total += units;
    above = fma(units, __hiloint2double(is_above ? 0x3ff00000 : 0, 0), above);
  }
  // After every sixteen tokens at most.
  WL_DEVICE void carry() {
    if (++visits % 64 == 0) flush();
  }
  WL_DEVICE uint64_t units_total() {
    flush();
    return carried_total;
  }
  WL_DEVICE uint64_t units_above() {
    flush();
    return carried_above;
  }

 private:
  WL_DEVICE void flush() {
    const double to_units = weights.unit_scale();
    carried_total += uint64_t(total * to_units), carried_above += uint64_t(above * to_units);
    total = above = 0.0;
  }
};

template <class Config>
using WeightsOf = conditional_t<Config::kFromLogits, LogitWeights, ProbWeights>;

// Sums of `approximate` are within this share of the true sum, given how many terms a thread adds: 2 ulp an exponential, 2 ulp
// times |log2| of its argument (which is log2(vocab) or less on the average over the mass), and the sum's own rounding.
WL_DEVICE float mass_error(int terms) { return 1e-5f + float(terms) * 0x1p-24f; }

}  // namespace warploom::sampling
