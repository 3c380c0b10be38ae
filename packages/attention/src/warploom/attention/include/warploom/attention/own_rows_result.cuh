// Results of a warp that has 16 rows of an item by itself.
#pragma once

#include "warploom/attention/result.cuh"
#include "warploom/mma.cuh"

namespace warploom::attention {

template <class Config, class Tile>
struct OwnRowsResult {
  using Writer = ResultWriter<Config>;
  using T = typename Config::Out;

  const Writer& writer;
  int slot;
  int first_row;  // of the tile, that is the warp's

  WL_DEVICE void write(Tile& tile) const {
    tile.finish_sums();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool is_empty = tile.sum[i] == 0.0f;
      const float lse = is_empty ? negative_infinity() : tile.largest[i] + log2f(tile.sum[i]);
      const float share = is_empty ? 0.0f : __fdividef(1.0f, tile.sum[i]);
      const auto to = writer.start_row(slot, first_row + lane_id() / 4 + 8 * i, lse, lane_id() % 4 == 0);
      if (slot >= 0) {
        if (to.partial) store_floats(to.partial, tile, i, share);
      } else if constexpr (sizeof(T) == 4) {
        if (to.out) store_floats(to.out, tile, i, share * to.factor);
      } else {
        store_halves(to.out, tile, i, share * to.factor);
      }
    }
  }

 private:
  // Columns that the lane has in two blocks of 8, times a factor: of each, or of both in turn.
  struct Columns {
    float2 first;
    float2 second;
  };
  WL_DEVICE static Columns columns(const Tile& tile, int number, int i, float factor) {
    const float(&first)[4] = tile.out[2 * number];
    const float(&second)[4] = tile.out[2 * number + 1];
    return {{first[2 * i] * factor, first[2 * i + 1] * factor}, {second[2 * i] * factor, second[2 * i + 1] * factor}};
  }
  WL_DEVICE static bool has_columns(int number, int first) {
    return (number + 1) * 16 <= Config::kValueDim || number * 16 + first < Config::kValueDim;
  }

  WL_DEVICE static void store_floats(float* row, const Tile& tile, int i, float factor) {
    const int lane = lane_id() % 4;
#pragma unroll
    for (int number = 0; number < Tile::kColumns; ++number) {
      const Columns of = columns(tile, number, i, factor);
      float* to = row + number * 16;
      if constexpr (Tile::kInterleaved) {
        if (has_columns(number, 4 * lane)) {
          *reinterpret_cast<float4*>(to + 4 * lane) = float4{of.first.x, of.second.x, of.first.y, of.second.y};
        }
      } else {
        if (has_columns(number, 0)) *reinterpret_cast<float2*>(to + 2 * lane) = of.first;
        if (has_columns(number, 8)) *reinterpret_cast<float2*>(to + 8 + 2 * lane) = of.second;
      }
    }
  }

  // Two lanes exchange what they have, so that each has four columns that lie together.
  WL_DEVICE static void store_halves(T* row, const Tile& tile, int i, float factor) {
    const int lane = lane_id() % 4;
    const bool is_odd = lane % 2;
    const int first_column = Tile::kInterleaved ? 4 * lane : is_odd * 8 + lane / 2 * 4;
#pragma unroll
    for (int number = 0; number < Tile::kColumns; ++number) {
      const Columns of = columns(tile, number, i, factor);
      uint2 values;
      if constexpr (Tile::kInterleaved) {
        values = {pack_operand<T>(of.first.x, of.second.x), pack_operand<T>(of.first.y, of.second.y)};
      } else {
        const uint32_t first = pack_operand<T>(of.first.x, of.first.y), second = pack_operand<T>(of.second.x, of.second.y);
        const uint32_t got = __shfl_xor_sync(kFullMask, is_odd ? first : second, 1);
        values = is_odd ? uint2{got, second} : uint2{first, got};
      }
      if (row && has_columns(number, first_column)) *reinterpret_cast<uint2*>(row + number * 16 + first_column) = values;
    }
  }
};

}  // namespace warploom::attention
