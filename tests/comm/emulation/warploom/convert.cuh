// Stands before core's header of this name: float32, and a bfloat16 that needs no CUDA headers.
#pragma once

#include "warploom/common.cuh"

struct __half;

namespace warploom {

struct HostBf16 { uint16_t bits; };

WL_DEVICE float to_float(float x) { return x; }
WL_DEVICE float to_float(HostBf16 x) { return std::bit_cast<float>(uint32_t(x.bits) << 16); }

template <class T>
WL_DEVICE T from_float(float x);
template <>
WL_DEVICE float from_float<float>(float x) {
  return x;
}
template <>
WL_DEVICE HostBf16 from_float<HostBf16>(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (x != x) return {0x7fff};
  return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

}  // namespace warploom

using __nv_bfloat16 = warploom::HostBf16;
