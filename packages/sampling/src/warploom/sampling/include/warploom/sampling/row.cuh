// One row of logits as aligned 16-byte vectors, and the part of it that one block of a cluster handles.
#pragma once

#include "warploom/cluster.cuh"
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

// Larger elements of two words, element by element; NaN loses.
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

template <class T>
WL_DEVICE void unpack(const Packed& packed, float (&out)[kVecWidth<T>]) {
  constexpr int kOfWord = 4 / int(sizeof(T));
  unpack_word(packed.x, out + 0 * kOfWord, T());
  unpack_word(packed.y, out + 1 * kOfWord, T());
  unpack_word(packed.z, out + 2 * kOfWord, T());
  unpack_word(packed.w, out + 3 * kOfWord, T());
}

// The largest element, NaN left out (-inf if there is nothing else).
template <class T, int kCount>
WL_DEVICE float max_element(const Packed (&vectors)[kCount]) {
  uint32_t largest = vectors[0].x;
#pragma unroll
  for (const Packed& v : vectors) {
    largest = max_word(max_word(largest, v.x, T()), max_word(v.y, max_word(v.z, v.w, T()), T()), T());
  }
  float x[4 / sizeof(T)];
  unpack_word(largest, x, T());
  float result = fmaxf(x[0], negative_infinity());
#pragma unroll
  for (float value : x) result = fmaxf(result, value);
  return result;
}

// Makes the compiler forget what it derived from the vectors: it would keep the converted elements from one use to the
// next rather than convert them again, and spill.
template <int kCount>
WL_DEVICE void forget_unpacked(Packed (&vectors)[kCount]) {
#pragma unroll
  for (Packed& v : vectors) asm volatile("" : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w));
}

// A row may start anywhere: its vectors begin at the 16-byte boundary at or before it, and `lead` elements of the first
// one belong to whatever precedes it. Elements outside the row are never touched and read as -inf.
template <class T>
struct Row {
  static constexpr int kWidth = kVecWidth<T>;
  using Vector = Vec<T, kWidth>;

  const T* base;
  int lead;
  int vocab;

  WL_DEVICE Row(const T* start, int vocab) : vocab(vocab) {
    lead = int(reinterpret_cast<uint64_t>(start) % 16) / int(sizeof(T));
    base = start - lead;
  }

  WL_DEVICE int vectors() const { return (lead + vocab + kWidth - 1) / kWidth; }
  // Element of the row that vector `index` starts with; negative in the first vector of a row that is not aligned.
  WL_DEVICE int first_element(int index) const { return index * kWidth - lead; }
  WL_DEVICE bool is_whole(int index) const {
    const int first = first_element(index);
    return first >= 0 && first + kWidth <= vocab;
  }

  // kReread: the vector is read again soon and should stay in L2.
  template <bool kReread>
  WL_DEVICE Packed load(int index) const {
    const T* pointer = base + index * kWidth;
    if (is_whole(index)) return (kReread ? Vector::load(pointer) : Vector::load_streaming(pointer)).raw();
    return load_edge(index, pointer);
  }

  WL_DEVICE static Packed nothing() {
    const uint32_t bits = bits_of_nothing();
    const uint32_t word = sizeof(T) == 4 ? bits : bits << 16 | bits;
    return Packed{word, word, word, word};
  }

 private:
  using Bits = typename RawBits<int(sizeof(T))>::type;
  static constexpr int kBits = 8 * int(sizeof(T));

  WL_DEVICE static Bits bits_of_nothing() {
    const T nothing = from_float<T>(negative_infinity());
    return *reinterpret_cast<const Bits*>(&nothing);
  }

  // At most two vectors of a row come here. Shifted together in a loop that is not unrolled: unrolled, and inlined for
  // every vector of a thread, it would set the register count of the kernel.
  WL_DEVICE Packed load_edge(int index, const T* pointer) const {
    const int first = first_element(index);
    uint64_t low = 0, high = 0;
#pragma unroll 1
    for (int i = kWidth - 1; i >= 0; --i) {
      const bool inside = first + i >= 0 && first + i < vocab;
      const Bits bits = inside ? reinterpret_cast<const Bits*>(pointer)[i] : bits_of_nothing();
      high = high << kBits | low >> (64 - kBits);
      low = low << kBits | bits;
    }
    return Packed{uint32_t(low), uint32_t(low >> 32), uint32_t(high), uint32_t(high >> 32)};
  }
};

// Vectors [begin, end) of a row: the share of one of the blocks that divide the row among them.
struct Slice {
  int begin;
  int end;

  WL_DEVICE Slice(int vectors, int part, int parts) {
    const int share = ceil_div(vectors, parts);
    begin = min(part * share, vectors);
    end = min(begin + share, vectors);
  }
};

// The blocks that share a row: those of a cluster, which has one block where the hardware or the launch has none.
WL_DEVICE int row_parts() {
#if __CUDA_ARCH__ >= 900
  return int(cluster_size());
#else
  return 1;
#endif
}
WL_DEVICE int row_part() {
#if __CUDA_ARCH__ >= 900
  return int(cluster_rank());
#else
  return 0;
#endif
}

}  // namespace warploom::sampling
