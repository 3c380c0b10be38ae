// Four floats to four fp8 values in one register: nearest even, saturating, NaN to the positive NaN, on every architecture.
//
// sm_89 and later have the instruction, which takes two values. Before that the header's conversion goes through double;
// the integer one below is about ten instructions a value and gives the same bits.
#pragma once

#include <cuda_fp8.h>

#include "warploom/common.cuh"

namespace warploom {

template <class T>
struct Fp8Format;
template <>
struct Fp8Format<__nv_fp8_e4m3> {
  static constexpr float kMax = 448.f;
  static constexpr int kMantissaBits = 3;
  static constexpr int kExponentBias = 7;
};
template <>
struct Fp8Format<__nv_fp8_e5m2> {
  static constexpr float kMax = 57344.f;
  static constexpr int kMantissaBits = 2;
  static constexpr int kExponentBias = 15;
};

template <class T>
WL_DEVICE uint32_t fp8_bits_in_software(float x) {
  using Format = Fp8Format<T>;
  constexpr int kDropped = 23 - Format::kMantissaBits;
  constexpr uint32_t kSmallestNormal = uint32_t(128 - Format::kExponentBias) << 23;  // 2^(1 - bias)
  // Adding a number whose last bit is the smallest subnormal, 2^(1 - bias - mantissa bits), rounds to a multiple of it.
  constexpr uint32_t kRounder = uint32_t(128 - Format::kExponentBias - Format::kMantissaBits + 23) << 23;
  const uint32_t sign = (__float_as_uint(x) >> 24) & 0x80;
  const uint32_t magnitude = __float_as_uint(fminf(fabsf(x), Format::kMax));
  const uint32_t to_even = (magnitude >> kDropped) & 1;
  const uint32_t rebias = uint32_t(127 - Format::kExponentBias) << Format::kMantissaBits;
  const uint32_t normal = ((magnitude + (1u << (kDropped - 1)) - 1 + to_even) >> kDropped) - rebias;
  const uint32_t subnormal = __float_as_uint(__uint_as_float(magnitude) + __uint_as_float(kRounder)) - kRounder;
  return x != x ? 0x7f : sign | (magnitude >= kSmallestNormal ? normal : subnormal);
}

// `a` goes to the lowest byte.
template <class T>
WL_DEVICE uint32_t pack_fp8x4(float a, float b, float c, float d) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  constexpr auto kFormat = is_same_v<T, __nv_fp8_e4m3> ? __NV_E4M3 : __NV_E5M2;
  const uint32_t low = __nv_cvt_float2_to_fp8x2(make_float2(a, b), __NV_SATFINITE, kFormat);
  const uint32_t high = __nv_cvt_float2_to_fp8x2(make_float2(c, d), __NV_SATFINITE, kFormat);
  return low | (high << 16);
#else
  return fp8_bits_in_software<T>(a) | (fp8_bits_in_software<T>(b) << 8) | (fp8_bits_in_software<T>(c) << 16) |
         (fp8_bits_in_software<T>(d) << 24);
#endif
}

}  // namespace warploom
