// How 16-byte vectors are read, a magnitude becomes an fp8 scale, and vectors become fp8: bit for bit
// backends/reference/quantize.py.
//
// Vectors stay the four words that were loaded. As arrays of 16-bit elements they would cost a permute for each element,
// twice what the arithmetic takes.
#pragma once

#include "warploom/convert.cuh"
#include "warploom/global_store.cuh"
#include "warploom/pack_fp8.cuh"
#include "warploom/reduce.cuh"
#include "warploom/vec.cuh"

namespace warploom::gemm {

// Data that is read once: it leaves the caches first. Zeros where nothing is.
template <class In>
WL_DEVICE uint4 load_vector(const In* x, bool present) {
  return present ? __ldcs(reinterpret_cast<const uint4*>(x)) : make_uint4(0, 0, 0, 0);
}

// The elements of T in a 32-bit word: the larger of two words of magnitudes, and for 16-bit types both as floats.
template <class T>
struct Word;
template <>
struct Word<float> {
  // Bits of magnitudes order like the magnitudes, with NaN last.
  WL_DEVICE static uint32_t max_of_magnitudes(uint32_t a, uint32_t b) { return max(a, b); }
};
template <>
struct Word<__nv_bfloat16> {
  WL_DEVICE static uint32_t max_of_magnitudes(uint32_t a, uint32_t b) {
    uint32_t y;
    asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
    return y;
  }
  WL_DEVICE static float2 unpack(uint32_t word) {
    return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000));
  }
};
template <>
struct Word<__half> {
  WL_DEVICE static uint32_t max_of_magnitudes(uint32_t a, uint32_t b) {
    uint32_t y;
    asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
    return y;
  }
  WL_DEVICE static float2 unpack(uint32_t word) { return __half22float2(*reinterpret_cast<const __half2*>(&word)); }
};

// Largest magnitude of N vectors of T.
template <class T, int N>
WL_DEVICE float abs_max(const uint4 (&vectors)[N]) {
  using W = Word<T>;
  constexpr uint32_t kNoSigns = is_same_v<T, float> ? 0x7fffffff : 0x7fff7fff;
  uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const uint4 v = vectors[i];
    const uint32_t low = W::max_of_magnitudes(v.x & kNoSigns, v.y & kNoSigns);
    const uint32_t high = W::max_of_magnitudes(v.z & kNoSigns, v.w & kNoSigns);
    largest = W::max_of_magnitudes(largest, W::max_of_magnitudes(low, high));
  }
  if constexpr (is_same_v<T, float>) {
    return __uint_as_float(largest);
  } else {
    const float2 pair = W::unpack(largest);
    return MaxNan()(pair.x, pair.y);
  }
}

struct Fp8Scale {
  float scale;    // q * scale is x again
  float inverse;  // x * inverse is rounded to q
};

// Smallest power of two at least `x`, which is positive and normal; infinity and NaN stay.
WL_DEVICE float round_up_to_power_of_two(float x) {
  const float rounded = __uint_as_float((__float_as_uint(x) + 0x7fffff) & 0x7f800000);
  return x != x ? x : rounded;
}

template <class Out>
WL_DEVICE Fp8Scale fp8_scale(float amax, float eps, bool power_of_two) {
  constexpr float kMax = Fp8Format<Out>::kMax;
  amax = MaxNan()(amax, eps);
  const float scale = __fdiv_rn(amax, kMax);
  if (!power_of_two) return {scale, __fdiv_rn(kMax, amax)};
  const float rounded = round_up_to_power_of_two(scale);
  return {rounded, __frcp_rn(rounded)};  // exact for powers of two
}

template <class Out>
WL_DEVICE uint32_t scaled_fp8x4(float2 low, float2 high, float inverse) {
  return pack_fp8x4<Out>(low.x * inverse, low.y * inverse, high.x * inverse, high.y * inverse);
}

// `q` lies in global memory and is aligned to the vector's number of elements.
template <class Out, class In>
WL_DEVICE void store_fp8(Out* q, uint4 x, float inverse) {
  if constexpr (is_same_v<In, float>) {
    const float2 low = make_float2(__uint_as_float(x.x), __uint_as_float(x.y));
    const float2 high = make_float2(__uint_as_float(x.z), __uint_as_float(x.w));
    store_global_bits(reinterpret_cast<uint32_t*>(q), scaled_fp8x4<Out>(low, high, inverse));
  } else {
    const uint32_t first = scaled_fp8x4<Out>(Word<In>::unpack(x.x), Word<In>::unpack(x.y), inverse);
    const uint32_t second = scaled_fp8x4<Out>(Word<In>::unpack(x.z), Word<In>::unpack(x.w), inverse);
    store_global_bits(reinterpret_cast<uint2*>(q), make_uint2(first, second));
  }
}

}  // namespace warploom::gemm
