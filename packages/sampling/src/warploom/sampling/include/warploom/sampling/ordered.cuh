// Float32 numbers as integers in the same order, for selection by digits.
#pragma once

#include "warploom/common.cuh"

namespace warploom::sampling {

// Not for NaN. -0 and 0 are one number.
WL_DEVICE uint32_t ordered(float x) {
  const uint32_t bits = __float_as_uint(x + 0.0f);
  return bits ^ (uint32_t(int(bits) >> 31) | 0x80000000u);
}
// NaN above all numbers.
WL_DEVICE uint32_t ordered_with_nan(float x) { return x == x ? ordered(x) : 0xffffffffu; }
WL_DEVICE float from_ordered(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}

// The smallest number above x.
WL_DEVICE float next_above(float x) { return from_ordered(ordered(x) + 1); }

}  // namespace warploom::sampling
