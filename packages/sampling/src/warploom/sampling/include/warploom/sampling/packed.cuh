// 16 bytes of a row: as they were loaded, and as float32 where they are used.
#pragma once

#include "warploom/convert.cuh"
#include "warploom/vec.cuh"

namespace warploom::sampling {

// 16 bytes of a row as they were loaded. Elements are converted where they are used: kept as separate values, 16-bit ones
// would take twice the registers.
using Packed = uint4;

WL_DEVICE void unpack_word(uint32_t word, float* out, float) { out[0] = __uint_as_float(word); }
WL_DEVICE void unpack_word(uint32_t word, float* out, __half) {
  const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&word));
  out[0] = pair.x;
  out[1] = pair.y;
}
WL_DEVICE void unpack_word(uint32_t word, float* out, __nv_bfloat16) {
  out[0] = __uint_as_float(word << 16);
  out[1] = __uint_as_float(word & 0xffff0000u);
}

template <class T>
WL_DEVICE void unpack(const Packed& packed, float (&out)[kVecWidth<T>]) {
  constexpr int kOfWord = 4 / int(sizeof(T));
  unpack_word(packed.x, out + 0 * kOfWord, T());
  unpack_word(packed.y, out + 1 * kOfWord, T());
  unpack_word(packed.z, out + 2 * kOfWord, T());
  unpack_word(packed.w, out + 3 * kOfWord, T());
}

// The larger elements of two words; a number wins over NaN.
WL_DEVICE uint32_t max_word(uint32_t a, uint32_t b, float) {
  return __float_as_uint(fmaxf(__uint_as_float(a), __uint_as_float(b)));
}
template <class T2>
WL_DEVICE uint32_t max_pair(uint32_t a, uint32_t b) {
  const T2 larger = __hmax2(*reinterpret_cast<const T2*>(&a), *reinterpret_cast<const T2*>(&b));
  return *reinterpret_cast<const uint32_t*>(&larger);
}
WL_DEVICE uint32_t max_word(uint32_t a, uint32_t b, __half) { return max_pair<__half2>(a, b); }
WL_DEVICE uint32_t max_word(uint32_t a, uint32_t b, __nv_bfloat16) { return max_pair<__nv_bfloat162>(a, b); }

// The largest element, NaN left out; -inf if there is nothing else. Compares packed: converted for this and again for the
// next use, elements would be kept in between and spill.
template <class T, int kCount>
WL_DEVICE float max_element(const Packed (&vectors)[kCount]) {
  uint32_t largest = vectors[0].x;
#pragma unroll
  for (const Packed& v : vectors) {
    largest = max_word(max_word(largest, v.x, T()), max_word(v.y, max_word(v.z, v.w, T()), T()), T());
  }
  float x[4 / sizeof(T)];
  unpack_word(largest, x, T());
  float result = negative_infinity();
#pragma unroll
  for (float value : x) result = fmaxf(result, value);
  return result;
}

// What a place beyond the row reads as: -inf, the neutral element of everything here.
template <class T>
WL_DEVICE Packed nothing() {
  const uint32_t word = sizeof(T) == 4 ? 0xff800000u : is_same_v<T, __half> ? 0xfc00fc00u : 0xff80ff80u;
  return Packed{word, word, word, word};
}

}  // namespace warploom::sampling
