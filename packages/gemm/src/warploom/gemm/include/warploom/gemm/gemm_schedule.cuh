// Which tiles a block computes: a share of all tiles of all groups.
//
// Groups whose sizes only the device knows are counted by every block on its own, at its start: a prefix sum over up to a thousand
// numbers, where a kernel before this one would cost a launch.
#pragma once

#include "warploom/cluster.cuh"
#include "warploom/gemm/gemm_params.cuh"
#include "warploom/reduce.cuh"

namespace warploom::gemm {

enum class Grouping { kUniform, kOffsets, kCounts };

// Where a tile's tokens and weights lie.
struct Tile {
  int token_batch;   // what is apart by group strides
  int first_token;   // in that
  int end_token;     // of its group; the tile may end before or after
  int weights;       // matrix of weights
  int first_column;  // of the output: row of the weights
  int end_column;    // that the tile is to write
};

// A tile's sums from one step of k to another.
struct Work {
  int tile;
  int first_step;
  int end_step;
};

template <class Config>
struct Schedule {
  static constexpr bool kCounts = Config::kGrouping != Grouping::kUniform;
  static constexpr int kMostGroups = 1024;
  static constexpr int kWarps = Config::kThreads / kWarpSize;

  struct Storage {
    int tile_ends[kCounts ? kMostGroups : 1];  // tiles of a group and of those before
    int warp_tiles[kWarps];
    int tiles;
  };

  const GemmParams& params;
  Storage& storage;

  // By all threads; a barrier follows.
  WL_DEVICE void open() const {
    if constexpr (kCounts) {
      const int each = ceil_div(params.groups, Config::kThreads), first = int(threadIdx.x) * each;
      int mine = 0;
      for (int i = 0; i < each; ++i) mine += tiles_of(first + i);
      int end = warp_prefix_sum(mine);
      if (lane_id() == kWarpSize - 1) storage.warp_tiles[warp_id()] = end;
      __syncthreads();
      for (int warp = 0; warp < warp_id(); ++warp) end += storage.warp_tiles[warp];
      if (threadIdx.x == Config::kThreads - 1) storage.tiles = end;
      end -= mine;
      for (int i = 0; i < each && first + i < params.groups; ++i) {
        end += tiles_of(first + i);
        storage.tile_ends[first + i] = end;
      }
    }
  }

  WL_DEVICE int tiles() const { return kCounts ? storage.tiles : params.groups * tiles_of(0); }

  // By all lanes of a warp.
  WL_DEVICE Tile tile(int number) const {
    int group = 0, local = number;
    if constexpr (kCounts) {
      group = group_of(number);
      if (group > 0) local -= storage.tile_ends[group - 1];
    } else {
      const int each = tiles_of(0);
      group = number / each, local -= group * each;
    }
    return tile_of(group, local);
  }

 private:
  WL_DEVICE int word(int i) const { return params.sizes[int64_t(i) * params.sizes_step]; }
  // A wrong number must not read or write what is not there.
  WL_DEVICE int start_of(int group) const {
    if constexpr (Config::kGrouping == Grouping::kOffsets) return min(max(word(group), 0), params.rows);
    return 0;
  }
  WL_DEVICE int end_of(int group) const {
    if constexpr (Config::kGrouping == Grouping::kOffsets) return start_of(group + 1);
    if constexpr (Config::kGrouping == Grouping::kCounts) return min(max(word(group), 0), params.rows);
    return params.rows;
  }
  WL_DEVICE int column_tiles() const { return ceil_div(params.n, params.weight_tile * Config::kCluster); }
  WL_DEVICE int token_tiles(int group) const {
    return ceil_div(max(end_of(group) - start_of(group), 0), Config::kTokenTile);
  }
  WL_DEVICE int tiles_of(int group) const { return group < params.groups ? token_tiles(group) * column_tiles() : 0; }

  // Of how many groups all tiles come before.
  WL_DEVICE int group_of(int number) const {
    int before = 0;
    for (int first = 0; first < params.groups; first += kWarpSize) {
      const int group = first + lane_id();
      const bool is_before = group < params.groups && storage.tile_ends[group] <= number;
      const uint32_t all = __ballot_sync(kFullMask, is_before);
      before += __popc(all);
      if (all != kFullMask) break;
    }
    return before;
  }

  // A band of tiles of tokens meets all weights before the next does, so that both stay in the L2.
  WL_DEVICE Tile tile_of(int group, int local) const {
    const int start = start_of(group), columns = column_tiles();
    const int band = local / (params.band * columns), in_band = local - band * params.band * columns;
    const int height = min(params.band, token_tiles(group) - band * params.band);
    const int column = in_band / height, token_tile = band * params.band + in_band - column * height;
    int weights = group * params.weights_step;
    if (params.weight_indices != nullptr) {
      weights = min(max(params.weight_indices[int64_t(group) * params.indices_step], 0), params.num_weights - 1);
    }
    Tile tile;
    tile.token_batch = Config::kGrouping == Grouping::kOffsets ? 0 : group;
    tile.first_token = start + token_tile * Config::kTokenTile;
    tile.end_token = end_of(group);
    tile.weights = weights;
    tile.first_column = column * Config::kCluster * params.weight_tile;
    if constexpr (Config::kCluster > 1) tile.first_column += int(cluster_rank()) * params.weight_tile;
    tile.end_column = min(tile.first_column + params.weight_tile, params.n);
    return tile;
  }
};

// A cluster's share, in order: every so manieth tile, and of its steps of k this block's part.
template <class Config>
struct Share {
  static constexpr int kBlocks = Config::kCluster * Config::kParts;  // of a cluster

  int at, end, stride, first_step, end_step;

  WL_DEVICE Share(const Schedule<Config>& schedule, const GemmParams& params)
      : at(blockIdx.x / kBlocks), end(schedule.tiles()), stride(gridDim.x / kBlocks), first_step(0), end_step(params.k_steps) {
    if constexpr (Config::kParts > 1) {
      const int part = int(cluster_rank());
      first_step = params.k_steps * part / Config::kParts, end_step = params.k_steps * (part + 1) / Config::kParts;
    }
  }

  WL_DEVICE bool has_work() const { return at < end; }
  WL_DEVICE Work work() const { return {at, first_step, end_step}; }
  WL_DEVICE void next() { at += stride; }
};

}  // namespace warploom::gemm
