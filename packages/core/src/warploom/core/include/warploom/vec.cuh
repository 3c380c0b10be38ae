// Vectors of elements that move as one 4-, 8- or 16-byte access.
#pragma once

#include "warploom/common.cuh"

namespace warploom {

template <int kBytes>
struct RawBits;
template <>
struct RawBits<1> { using type = uint8_t; };
template <>
struct RawBits<2> { using type = uint16_t; };
template <>
struct RawBits<4> { using type = uint32_t; };
template <>
struct RawBits<8> { using type = uint2; };
template <>
struct RawBits<16> { using type = uint4; };

// N elements of T, aligned to their size. N * sizeof(T) is 1, 2, 4, 8 or 16 bytes.
template <class T, int N>
struct alignas(sizeof(T) * N) Vec {
  using Raw = typename RawBits<int(sizeof(T) * N)>::type;
  T data[N];

  WL_DEVICE T& operator[](int i) { return data[i]; }
  WL_DEVICE const T& operator[](int i) const { return data[i]; }

  WL_DEVICE static Vec from_raw(Raw raw) {
    Vec v;
    *reinterpret_cast<Raw*>(v.data) = raw;
    return v;
  }
  WL_DEVICE Raw raw() const { return *reinterpret_cast<const Raw*>(data); }

  // `pointer` must be aligned to the vector.
  WL_DEVICE static Vec load(const T* pointer) { return from_raw(*reinterpret_cast<const Raw*>(pointer)); }
  // Read-only data that is used once: marked to leave the caches first.
  WL_DEVICE static Vec load_streaming(const T* pointer) { return from_raw(__ldcs(reinterpret_cast<const Raw*>(pointer))); }
  WL_DEVICE void store(T* pointer) const { *reinterpret_cast<Raw*>(pointer) = raw(); }
  WL_DEVICE void store_streaming(T* pointer) const { __stcs(reinterpret_cast<Raw*>(pointer), raw()); }
};

// Elements of T in a 16-byte access.
template <class T>
constexpr int kVecWidth = 16 / int(sizeof(T));

}  // namespace warploom
