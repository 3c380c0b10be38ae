// Results of warps that have the same 16 rows, and different keys of an item.
#pragma once

#include "warploom/attention/result.cuh"

namespace warploom::attention {

// What Team::kWarps warps, the block's first ones, leave in shared memory: Team::kColumns columns of outputs at a time.
template <class Team>
struct alignas(16) SharedRows {
  float columns[Team::kWarps][kWarpRows][Team::kColumns + 4];
  float largest[Team::kWarps][kWarpRows];
  float sum[Team::kWarps][kWarpRows];
};

// Puts the warps' states together and writes them.
template <class Config, class Tile, class Team>
struct SharedRowsResult {
  using Writer = ResultWriter<Config>;
  static constexpr int kWarps = Team::kWarps;
  static constexpr int kPieces = ceil_div(Config::kValueDim, Team::kColumns);
  static constexpr int kLanes = Team::kColumns / 4;  // threads of a row, 4 columns of every Team::kColumns each
  static_assert(kWarps * kWarpSize / kLanes >= kWarpRows, "a thread for each piece");

  SharedRows<Team>& storage;
  const Writer& writer;
  int slot;

  WL_DEVICE void write(Tile& tile) {
    scale(tile);
    const int row = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
    const bool has_row = row < kWarpRows;
    const auto to = has_row ? writer.start_row(slot, row, sum_of(row).lse(), lane == 0) : typename Writer::Row{};
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      stage(tile, piece);
      Team::sync();
      const int column = piece * Team::kColumns + lane * 4;
      if (has_row && column < Config::kValueDim) to.store(column, sum_of_columns(row, lane * 4));
      Team::sync();
    }
  }

 private:
  // Makes the states shares of the rows' sums, which are left in `storage`.
  WL_DEVICE void scale(Tile& tile) {
    tile.finish_sums();
    const int row = lane_id() / 4;
    if (lane_id() % 4 == 0) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        storage.largest[warp_id()][row + 8 * i] = tile.largest[i];
        storage.sum[warp_id()][row + 8 * i] = tile.sum[i];
      }
    }
    Team::sync();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const RowSum all = sum_of(row + 8 * i);
      const float factor = all.total == 0.0f ? 0.0f : __fdividef(exp2_approx(tile.largest[i] - all.from), all.total);
#pragma unroll
      for (auto& block : tile.out) block[2 * i] *= factor, block[2 * i + 1] *= factor;
    }
  }

  // What the warps have of a row, together: total * 2**from.
  struct RowSum {
    float from;
    float total;

    WL_DEVICE float lse() const { return total == 0.0f ? negative_infinity() : from + log2f(total); }
  };
  WL_DEVICE RowSum sum_of(int row) const {
    float most = negative_infinity(), total = 0.0f;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) most = fmaxf(most, storage.largest[warp][row]);
    const float from = most == negative_infinity() ? 0.0f : most;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) {
      total += storage.sum[warp][row] * exp2_approx(storage.largest[warp][row] - from);
    }
    return {from, total};
  }

  WL_DEVICE void stage(const Tile& tile, int piece) {
#pragma unroll
    for (int column = 0; column < Team::kColumns / 16; ++column) {
      const int of_all = piece * (Team::kColumns / 16) + column;
      if (of_all >= Tile::kColumns) continue;
      const float(&first)[4] = tile.out[2 * of_all];
      const float(&second)[4] = tile.out[2 * of_all + 1];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float* to = &storage.columns[warp_id()][lane_id() / 4 + 8 * i][column * 16];
        const int lane = lane_id() % 4;
        if constexpr (Tile::kInterleaved) {
          *reinterpret_cast<float4*>(to + 4 * lane) = float4{first[2 * i], second[2 * i], first[2 * i + 1], second[2 * i + 1]};
        } else {
          *reinterpret_cast<float2*>(to + 2 * lane) = float2{first[2 * i], first[2 * i + 1]};
          *reinterpret_cast<float2*>(to + 8 + 2 * lane) = float2{second[2 * i], second[2 * i + 1]};
        }
      }
    }
  }

  WL_DEVICE float4 sum_of_columns(int row, int column) const {
    float4 sums = {0, 0, 0, 0};
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) {
      const float4 mine = *reinterpret_cast<const float4*>(&storage.columns[warp][row][column]);
      sums.x += mine.x, sums.y += mine.y, sums.z += mine.z, sums.w += mine.w;
    }
    return sums;
  }
};

}  // namespace warploom::attention
