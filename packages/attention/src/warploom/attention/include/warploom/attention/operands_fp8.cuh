// Operands from keys and values of 8 bits, which become those of 16 bits in registers: float16, which has all their numbers.
//
// A lane takes four neighbours in a row of keys as its two pairs of components, and queries are read in that order: sums over
// components do not depend on it. Of values it gets two neighbours in each of two rows; one block of 8 columns has the even
// components, the other the odd ones.
#pragma once

#include <cuda_fp8.h>

#include "warploom/attention/operands.cuh"

namespace warploom::attention {

// Two numbers, in the lower half of `pair`, as float16: exactly.
template <class Kv>
WL_DEVICE uint32_t widen_to_half(uint32_t pair) {
  if constexpr (is_same_v<Kv, __nv_fp8_e5m2>) {
    return __byte_perm(pair, 0, 0x1404);  // the upper byte of a float16
  } else {
#if __CUDA_ARCH__ >= 890
    const __half2_raw halves = __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(pair), __NV_E4M3);
    return reinterpret_cast<const uint32_t&>(halves);
#else
    const uint32_t apart = __byte_perm(pair, 0, 0x4140), magnitude = apart & 0x007f007f;
    const uint32_t bits = (apart & 0x00800080) << 8 | magnitude << 7;  // 2**-8 of the number, subnormal ones too
    const __half2 halves = __hmul2(reinterpret_cast<const __half2&>(bits), __float2half2_rn(256.0f));
    return reinterpret_cast<const uint32_t&>(halves) | (__vcmpeq2(magnitude, 0x007f007f) & 0x7fff7fff);  // NaN
#endif
  }
}

template <class T, class Kv>
struct Fp8Operands {
  static constexpr bool kInterleaved = true;

  WL_DEVICE static int column(int half) { return lane_id() % 4 * 4 + half * 2; }

  template <class Rows>
  WL_DEVICE static void load_keys(uint32_t (&to)[4], uint32_t rows, int step) {
    uint32_t fours[2];
    load_matrices(fours, Rows::onwards(rows + Rows::offset(lane_id() % 16, 0), step));
    widen(fours[0], to[0], to[1]);
    widen(fours[1], to[2], to[3]);
  }

  template <class Rows>
  WL_DEVICE static void load_values(uint32_t (&to)[4], uint32_t rows, int step) {
    uint32_t fours[2];
    load_matrices_transposed(fours, Rows::onwards(rows + Rows::offset(lane_id() % 16, 0), step));
    widen(__byte_perm(fours[0], 0, 0x3120), to[0], to[2]);
    widen(__byte_perm(fours[1], 0, 0x3120), to[1], to[3]);
  }

  template <int kCount>
  WL_DEVICE static Vec<uint32_t, kCount> load_pairs(const uint8_t* from) {
    const auto narrow = Vec<uint16_t, kCount>::load(reinterpret_cast<const uint16_t*>(from));
    Vec<uint32_t, kCount> pairs;
#pragma unroll
    for (int i = 0; i < kCount; ++i) pairs[i] = widen_pair(narrow[i]);
    return pairs;
  }

 private:
  // Four numbers to two pairs.
  WL_DEVICE static void widen(uint32_t four, uint32_t& low, uint32_t& high) {
    low = widen_pair(four & 0xffff), high = widen_pair(four >> 16);
  }
  WL_DEVICE static uint32_t widen_pair(uint32_t pair) {
    const uint32_t halves = widen_to_half<Kv>(pair);
    if constexpr (is_same_v<T, __half>) return halves;
    const float2 numbers = __half22float2(reinterpret_cast<const __half2&>(halves));
    return pack_operand<T>(numbers.x, numbers.y);
  }
};

template <class T>
struct Operands<T, __nv_fp8_e4m3> : Fp8Operands<T, __nv_fp8_e4m3> {};
template <class T>
struct Operands<T, __nv_fp8_e5m2> : Fp8Operands<T, __nv_fp8_e5m2> {};

}  // namespace warploom::attention
