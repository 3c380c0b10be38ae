// The warpgroup that copies: one thread asks TMA for both operands, a warp brings the scales of blocks, two gather tokens.
#pragma once

#include "warploom/cp_async.cuh"
#include "warploom/gemm/gemm_config.cuh"
#include "warploom/tma.cuh"

namespace warploom::gemm {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// As TMA sees them: [batch, rows, k], or [batch, k, rows] if they are turned.
struct OperandMaps {
  const TensorMap* tokens;
  const TensorMap* weights;
};

template <class Config>
struct OperandCopies {
  using Storage = GemmStorage<Config>;
  static constexpr int kStages = Config::kStages;

  OperandMaps maps;
  Storage& storage;
  uint8_t* memory;
  uint32_t stage_bytes;
  RingPlace<kStages> place;

  // By a warp.
  WL_DEVICE void work(const Schedule<Config>& schedule, Share<Config> share) {
#pragma unroll 1
    while (share.has_work()) {
      const Work work = share.work();
      const Tile tile = schedule.tile(work.tile);
      if (lane_id() == 0) copy(tile, work);
      __syncwarp();
      share.next();
    }
  }

 private:
  WL_DEVICE void copy(const Tile& tile, const Work& work) {
#pragma unroll 1
    for (int step = work.first_step; step < work.end_step; ++step, place.next()) {
      storage.ring.wait_free(place);
      const int stage = place.stage();
      if (step == work.first_step) storage.copied_tiles[stage] = tile;
      uint64_t* full = &storage.ring.full[stage];
      mbarrier_expect_bytes(full, stage_bytes);
      uint8_t* rows = Storage::rows(memory, stage);
      uint8_t* columns = Storage::columns(memory, stage);
      if constexpr (Config::kSwapped) {
        copy_weights<Config::kRows>(rows, full, tile, step);
        copy_tokens(columns, full, tile, step);
      } else {
        copy_tokens(rows, full, tile, step);
        copy_weights<Config::kColumns>(columns, full, tile, step);
      }
    }
  }

  // Each block of a cluster brings its part of the rows for all.
  WL_DEVICE void copy_tokens(uint8_t* rows, uint64_t* full, const Tile& tile, int step) {
    constexpr int kCluster = Config::kCluster;
    if constexpr (Config::kGathers) return;
    if constexpr (kCluster == 1) {
      tma_load_3d(rows, maps.tokens, full, step * Config::kDepth, tile.first_token, tile.token_batch);
    } else {
      const int part = int(cluster_rank());
      constexpr int kPart = Config::kRows / kCluster;
      tma_multicast_3d(rows + part * kPart * Config::kSpan, maps.tokens, full, step * Config::kDepth,
                       tile.first_token + part * kPart, tile.token_batch, (1 << kCluster) - 1);
    }
  }

  template <int kNumber>
  WL_DEVICE void copy_weights(uint8_t* to, uint64_t* full, const Tile& tile, int step) {
    if constexpr (Config::kWeightsTurned) {
#pragma unroll
      for (int i = 0; i < kNumber / Config::kDepth; ++i) {
        tma_load_3d(to + i * Config::kDepth * Config::kSpan, maps.weights, full, tile.first_column + i * Config::kDepth,
                    step * Config::kDepth, tile.weights);
      }
    } else {
      tma_load_3d(to, maps.weights, full, step * Config::kDepth, tile.first_column, tile.weights);
    }
  }
};

// Tokens that lie anywhere come by copies of 16 bytes, to where TMA would put them. By two warps, each its rows of the tile.
template <class Config>
struct TokenGather {
  using Storage = GemmStorage<Config>;
  static constexpr int kPieceBytes = 16;
  static constexpr int kPieces = Config::kSpan / kPieceBytes;
  static constexpr int kRows = Config::kTokenTile / Config::kGatherWarps;  // of a warp
  static constexpr int kRowsAtOnce = kWarpSize / kPieces;
  static constexpr int kIndices = ceil_div(kRows, kWarpSize);
  static_assert(kRows % kRowsAtOnce == 0 && (kRows < kWarpSize || kRows % kWarpSize == 0), "a warp copies whole rows");

  const GemmParams& params;
  Storage& storage;
  uint8_t* memory;
  RingPlace<Config::kStages> place;

  WL_DEVICE void work(const Schedule<Config>& schedule, Share<Config> share, int first_row) {
#pragma unroll 1
    while (share.has_work()) {
      const Work work = share.work();
      copy(schedule.tile(work.tile), work, first_row);
      share.next();
    }
  }

 private:
  WL_DEVICE void copy(const Tile& tile, const Work& work, int first_row) {
    int tokens[kIndices];  // of this lane's rows; below 0 where the tile has none
#pragma unroll
    for (int i = 0; i < kIndices; ++i) {
      const int local = i * kWarpSize + lane_id(), row = tile.first_token + first_row + local;
      tokens[i] = local < kRows && row < tile.end_token ? token_of_row<Config>(params, row) : -1;
    }
    const int piece = lane_id() % kPieces, row_at_once = lane_id() / kPieces;
#pragma unroll 1
    for (int step = work.first_step; step < work.end_step; ++step, place.next()) {
      storage.ring.wait_free(place);
      const int offset = step * Config::kSpan + piece * kPieceBytes;
      const int bytes = min(max(params.k_bytes - offset, 0), kPieceBytes);
      const uint8_t* from = params.tokens + (bytes > 0 ? offset : 0);
      const int stage = place.stage();
      const uint32_t to = shared_address(Config::kSwapped ? Storage::columns(memory, stage) : Storage::rows(memory, stage));
#pragma unroll
      for (int i = 0; i < kIndices; ++i) {
#pragma unroll 4
        for (int j = 0; j < min(kRows, kWarpSize); j += kRowsAtOnce) {
          const int row = first_row + i * kWarpSize + j + row_at_once;
          const int token = __shfl_sync(kFullMask, tokens[i], j + row_at_once);
          cp_async_16_of(to + row * Config::kSpan + ((piece ^ row % kPieces) * kPieceBytes),
                         from + max(token, 0) * params.token_bytes, token < 0 ? 0 : bytes);
        }
      }
      mbarrier_arrive_after_copies(&storage.ring.full[stage]);
    }
  }
};

// Scales of blocks come by copies of 4 bytes each, in whatever order they are stored: TMA would need rows of 16 bytes.
template <class Config>
struct ScaleCopies {
  using Storage = GemmStorage<Config>;
  static constexpr int kRowsEach = ceil_div(Config::kRows, kWarpSize);
  static constexpr int kColumnsEach = ceil_div(Config::kColumnScales, kWarpSize);

  const GemmParams& params;
  Storage& storage;
  RingPlace<Config::kStages> place;

  // By a warp.
  WL_DEVICE void work(const Schedule<Config>& schedule, Share<Config> share) {
#pragma unroll 1
    while (share.has_work()) {
      const Work work = share.work();
      copy(schedule.tile(work.tile), work);
      share.next();
    }
  }

 private:
  WL_DEVICE int of_token(const Tile& tile, int i) const {
    const int row = min(tile.first_token + i, params.rows - 1);
    return token_of_row<Config>(params, row) / params.token_scale_rows * params.token_scale_row_stride;
  }
  WL_DEVICE int of_weight(const Tile& tile, int i) const {
    return min(tile.first_column + i, params.n - 1) / params.weight_scale_rows * params.weight_scale_row_stride;
  }

  WL_DEVICE void copy(const Tile& tile, const Work& work) {
    const float* tokens = params.token_scales + tile.token_batch * params.token_scale_group_stride;
    const float* weights = params.weight_scales + tile.weights * params.weight_scale_group_stride;
    const float* rows = Config::kSwapped ? weights : tokens;
    const float* columns = Config::kSwapped ? tokens : weights;
    const int row_stride = Config::kSwapped ? params.weight_scale_k_stride : params.token_scale_k_stride;
    const int column_stride = Config::kSwapped ? params.token_scale_k_stride : params.weight_scale_k_stride;
    int of_row[kRowsEach], of_column[kColumnsEach];
#pragma unroll
    for (int i = 0; i < kRowsEach; ++i) {
      const int at = i * kWarpSize + lane_id();
      of_row[i] = Config::kSwapped ? of_weight(tile, at) : of_token(tile, at);
    }
#pragma unroll
    for (int i = 0; i < kColumnsEach; ++i) {
      const int at = i * kWarpSize + lane_id();
      of_column[i] = Config::kSwapped ? of_token(tile, at) : of_weight(tile, at);
    }
#pragma unroll 1
    for (int step = work.first_step; step < work.end_step; ++step, place.next()) {
      const int block = step / params.scale_steps;
      storage.ring.wait_free(place);
      auto& scales = storage.scales[place.stage()];
#pragma unroll
      for (int i = 0; i < kRowsEach; ++i) {
        cp_async_4(&scales.of_rows[i * kWarpSize + lane_id()], rows + of_row[i] + int64_t(block) * row_stride);
      }
#pragma unroll
      for (int i = 0; i < kColumnsEach; ++i) {
        const int at = i * kWarpSize + lane_id();
        if (Config::kColumnScales % kWarpSize != 0 && at >= Config::kColumnScales) continue;
        cp_async_4(&scales.of_columns[at], columns + of_column[i] + int64_t(block) * column_stride);
      }
      mbarrier_arrive_after_copies(&storage.ring.full[place.stage()]);
    }
  }
};

#endif

}  // namespace warploom::gemm
