// How the columns of a row are dealt to the lanes of a warp, 16 to each, and vectors of them become floats and fp8.
#pragma once

#include "warploom/gemm/fp8_scale.cuh"

namespace warploom::gemm {

// The 16 elements that a lane holds of kGroup columns of a row. The vectors of a group are dealt to its lanes in turn, so that
// every load covers whole 128-byte lines.
template <class In, int kGroup>
struct RowPiece {
  static constexpr int kWidth = kVecWidth<In>;
  static constexpr int kVectors = 16 / kWidth;
  static constexpr int kLanes = kGroup / 16;
  using Vectors = uint4[kVectors];
  using Floats = float[kVectors][kWidth];

  uint32_t group;    // of the row
  uint32_t first;    // column of the first vector
  uint32_t columns;  // of the row, a multiple of kWidth; 0 for a lane that has nothing to do

  // Pieces are numbered along the row.
  WL_DEVICE RowPiece(uint32_t number, uint32_t columns)
      : group(number / kLanes), first(group * kGroup + number % kLanes * kWidth), columns(columns) {}

  WL_DEVICE uint32_t column(int vector) const { return first + vector * kLanes * kWidth; }
  WL_DEVICE bool present(int vector) const { return column(vector) < columns; }
  // Of the lanes of a group, the one that writes what they share.
  WL_DEVICE bool leads() const { return threadIdx.x % kLanes == 0 && first < columns; }

  WL_DEVICE void load(const In* row, Vectors& vectors) const {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) vectors[i] = load_vector(row + column(i), present(i));
  }

  // What other rows need again.
  WL_DEVICE void load_cached(const In* row, Vectors& vectors) const {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      vectors[i] = present(i) ? __ldg(reinterpret_cast<const uint4*>(row + column(i))) : make_uint4(0, 0, 0, 0);
    }
  }

  WL_DEVICE void store(In* row, const Vectors& vectors) const {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (present(i)) store_global_bits(reinterpret_cast<uint4*>(row + column(i)), vectors[i]);
    }
  }

  template <class Out>
  WL_DEVICE void store_fp8(Out* row, const Floats& y, float inverse) const {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      uint32_t codes[kWidth / 4];
#pragma unroll
      for (int j = 0; j < kWidth / 4; ++j) {
        const float* four = y[i] + j * 4;
        codes[j] = scaled_fp8x4<Out>(make_float2(four[0], four[1]), make_float2(four[2], four[3]), inverse);
      }
      if (!present(i)) continue;
      if constexpr (kWidth == 4) {
        store_global_bits(reinterpret_cast<uint32_t*>(row + column(i)), codes[0]);
      } else {
        store_global_bits(reinterpret_cast<uint2*>(row + column(i)), make_uint2(codes[0], codes[1]));
      }
    }
  }

  WL_DEVICE static float abs_max(const Floats& y) {
    float largest = 0.f;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) largest = MaxNan()(largest, fabsf(y[i][j]));
    }
    return largest;
  }
};

// The elements of a vector of In.
template <class In>
WL_DEVICE void unpack(uint4 vector, float (&values)[kVecWidth<In>]) {
  const uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (is_same_v<In, float>) {
      values[i] = __uint_as_float(words[i]);
    } else {
      const float2 pair = Word<In>::unpack(words[i]);
      values[2 * i] = pair.x;
      values[2 * i + 1] = pair.y;
    }
  }
}

// Rounded to nearest even.
template <class In>
WL_DEVICE uint4 pack(const float (&values)[kVecWidth<In>]) {
  Vec<In, kVecWidth<In>> vector;
#pragma unroll
  for (int i = 0; i < kVecWidth<In>; ++i) vector[i] = from_float<In>(values[i]);
  return vector.raw();
}

}  // namespace warploom::gemm
