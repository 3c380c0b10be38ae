// attention_hopper.cuh with queries, keys and values of type e4m3.
#pragma once

#include "warploom/attention/softmax_rows.cuh"
#include "warploom/pack_fp8.cuh"
#include "warploom/wgmma_fp8.cuh"

namespace warploom::attention {

// 32 keys of a row are four blocks of the sums. Of each a lane has two neighbours, which follow one another in its registers:
// values lie in that order too (value_turn.cuh).
template <>
struct WeightOperands<__nv_fp8_e4m3> {
  // The largest number is 448, the smallest 2^-9: there is room for 2^8, and for weights of 2^-12 beside the largest. A lane's 32
  // weights of a row can't add up to more than is allowed when they are as large as when the largest is found.
  static constexpr float kMost = 3.0f;
  static constexpr float kMostAdded = 448.0f;

  template <int kBlocks>
  WL_DEVICE static void pack(const float (&weights)[4 * kBlocks][4], uint32_t (&to)[kBlocks][4]) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float(&low)[4] = weights[4 * block + i / 2 * 2];
        const float(&high)[4] = weights[4 * block + i / 2 * 2 + 1];
        const int row = i % 2 * 2;
        to[block][i] = pack_fp8x4<__nv_fp8_e4m3>(low[row], low[row + 1], high[row], high[row + 1]);
      }
    }
  }
};

}  // namespace warploom::attention

#include "warploom/attention/attention_hopper.cuh"
