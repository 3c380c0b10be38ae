// From sums to the output: scales, bias, activation, conversion, and rows of 32 or 128 bytes to memory.
#pragma once

#include "warploom/convert.cuh"
#include "warploom/gemm/gemm_products.cuh"
#include "warploom/global_store.cuh"
#include "warploom/mma.cuh"

namespace warploom::gemm {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

WL_DEVICE float load_bias(const GemmParams& params, int column) {
  if (params.bias_type == kFloatBias) return static_cast<const float*>(params.bias)[column];
  if (params.bias_type == kHalfBias) return to_float(static_cast<const __half*>(params.bias)[column]);
  return to_float(static_cast<const __nv_bfloat16*>(params.bias)[column]);
}

template <Activation kActivation>
WL_DEVICE float activate(float x) {
  if constexpr (kActivation == Activation::kRelu) return x < 0.f ? 0.f : x;  // NaN stays
  if constexpr (kActivation == Activation::kGelu) return 0.5f * x * (1.f + erff(x * 0.70710678118654752f));
  if constexpr (kActivation == Activation::kSilu) return x / (1.f + __expf(-x));
  return x;
}

// What a row or a column of sums is multiplied by, and what is added.
struct Line {
  float scale = 1.f;
  float bias = 0.f;
};

template <class Config>
struct TileResult {
  using Out = typename Config::Out;
  using Storage = GemmStorage<Config>;
  static constexpr bool kSwapped = Config::kSwapped;
  static constexpr int kWarpRows = 16;

  const GemmParams& params;
  Storage& storage;

  // By a warpgroup, its rows of the tile; sums of columns from `first_column` of the tile on.
  template <int kBlocks>
  WL_DEVICE void write(const float (&sums)[Config::kWaves][kBlocks][4], Tile tile, int first_column) const {
    (kSwapped ? tile.first_token : tile.first_column) += first_column;
#pragma unroll
    for (int wave = 0; wave < Config::kWaves; ++wave) {
      const int row = ((Warpgroup::number() - 1) * Config::kWaves + wave) * Warpgroup::kRows + Warpgroup::warp() * kWarpRows;
      if constexpr (sizeof(Out) == 2) {
        if constexpr (kSwapped) {
          write_swapped(sums[wave], tile, row);
        } else {
          write_rows(sums[wave], tile, row);
        }
      } else {
        write_singly(sums[wave], tile, row);
      }
    }
  }

 private:
  WL_DEVICE Out* output(const Tile& tile, int token) const {
    return static_cast<Out*>(params.out) + tile.token_batch * params.out_group_stride + int64_t(token) * params.out_row_stride;
  }

  WL_DEVICE Line line_of_token(const Tile& tile, int token) const {
    if constexpr (Config::kScaling != Scaling::kAtEnd) return {};
    if (token >= tile.end_token) return {};
    const int64_t of = int64_t(token_of_row<Config>(params, token)) * params.token_scale_row_stride;
    return {params.token_scales[tile.token_batch * params.token_scale_group_stride + of]};
  }
  WL_DEVICE Line line_of_weight(const Tile& tile, int column) const {
    Line line;
    if (column >= tile.end_column) return line;
    if constexpr (Config::kScaling == Scaling::kAtEnd) {
      line.scale = params.weight_scales[tile.weights * params.weight_scale_group_stride + int64_t(column) * params.weight_scale_row_stride];
    }
    if constexpr (Config::kHasBias) line.bias = load_bias(params, column);
    return line;
  }
  WL_DEVICE Line line_of_row(const Tile& tile, int row) const {
    return kSwapped ? line_of_weight(tile, tile.first_column + row) : line_of_token(tile, tile.first_token + row);
  }
  WL_DEVICE Line line_of_column(const Tile& tile, int column) const {
    return kSwapped ? line_of_token(tile, tile.first_token + column) : line_of_weight(tile, tile.first_column + column);
  }

  WL_DEVICE static float finish(float sum, const Line& row, const Line& column) {
    if constexpr (Config::kScaling == Scaling::kAtEnd) sum *= row.scale * column.scale;
    if constexpr (Config::kHasBias) sum += kSwapped ? row.bias : column.bias;
    return activate<Config::kActivation>(sum);
  }

  // A block of 8 columns as two registers of neighbours: rows 0 to 7 of the warp's, and 8 to 15.
  WL_DEVICE void pack(uint32_t& low, uint32_t& high, const float (&sums)[4], const Line (&rows)[2], const Tile& tile, int block) const {
    const int column = block * 8 + lane_id() % 4 * 2;
    const Line columns[2] = {line_of_column(tile, column), line_of_column(tile, column + 1)};
    low = pack_operand<Out>(finish(sums[0], rows[0], columns[0]), finish(sums[1], rows[0], columns[1]));
    high = pack_operand<Out>(finish(sums[2], rows[1], columns[0]), finish(sums[3], rows[1], columns[1]));
  }

  // What is computed from a number is computed anew: addresses of all columns' scales would take the registers of the sums.
  WL_DEVICE static void forget(int& number) { asm volatile("" : "+r"(number)); }

  // Rows are tokens: 64 columns at a time, 128 bytes of each of the warp's 16 rows, with their pieces exchanged.
  template <int kBlocks>
  WL_DEVICE void write_rows(const float (&sums)[kBlocks][4], Tile tile, int row) const {
    static_assert(kSwapped || kBlocks % 8 == 0, "columns come in 64s");
    const Line rows[2] = {line_of_row(tile, row + lane_id() / 4), line_of_row(tile, row + lane_id() / 4 + 8)};
    uint8_t* staged = storage.results[Warpgroup::warp() + (Warpgroup::number() - 1) * Warpgroup::kWarps];
    const int to_row = lane_id() % 16, from_row = lane_id() / 8, piece = lane_id() % 8;
#pragma unroll
    for (int first = 0; first < kBlocks; first += 8) {
      forget(tile.first_column);
#pragma unroll
      for (int block = 0; block < 8; block += 2) {
        uint32_t packed[4];
        pack(packed[0], packed[1], sums[first + block], rows, tile, first + block);
        pack(packed[2], packed[3], sums[first + block + 1], rows, tile, first + block + 1);
        const int to_piece = block + lane_id() / 16;
        store_matrices(shared_address(staged) + to_row * 128 + ((to_piece ^ to_row % 8) << 4), packed);
      }
      __syncwarp();
      const int column = tile.first_column + first * 8 + piece * 8;
#pragma unroll
      for (int i = 0; i < kWarpRows; i += 4) {
        const int at = i + from_row, token = tile.first_token + row + at;
        const uint4 bits = *reinterpret_cast<const uint4*>(staged + at * 128 + ((piece ^ at % 8) << 4));
        if (token < tile.end_token && column < tile.end_column) store_global_bits(reinterpret_cast<uint4*>(output(tile, token) + column), bits);
      }
      __syncwarp();
    }
  }

  // Rows are weights, and go down the columns of the output: 32 bytes of each token.
  template <int kBlocks>
  WL_DEVICE void write_swapped(const float (&sums)[kBlocks][4], const Tile& tile, int row) const {
    constexpr int kAtOnce = kBlocks < 8 ? kBlocks : 8;
    const Line rows[2] = {line_of_row(tile, row + lane_id() / 4), line_of_row(tile, row + lane_id() / 4 + 8)};
    uint8_t* staged = storage.results[Warpgroup::warp() + (Warpgroup::number() - 1) * Warpgroup::kWarps];
    const int column = tile.first_column + row + lane_id() % 2 * 8;
#pragma unroll
    for (int first = 0; first < kBlocks; first += kAtOnce) {
      if constexpr (kBlocks == 1) {
        uint32_t packed[2];
        pack(packed[0], packed[1], sums[0], rows, tile, 0);
        store_matrices_transposed(staging(staged, lane_id() % 8, lane_id() / 8 % 2), packed);
      } else {
#pragma unroll
        for (int block = 0; block < kAtOnce; block += 2) {
          uint32_t packed[4];
          pack(packed[0], packed[1], sums[first + block], rows, tile, first + block);
          pack(packed[2], packed[3], sums[first + block + 1], rows, tile, first + block + 1);
          store_matrices_transposed(staging(staged, block * 8 + lane_id() / 16 * 8 + lane_id() % 8, lane_id() / 8 % 2), packed);
        }
      }
      __syncwarp();
#pragma unroll
      for (int i = 0; i < kAtOnce * 8; i += 16) {
        const int at = i + lane_id() / 2, token = tile.first_token + first * 8 + at;
        const bool is_there = at < kAtOnce * 8 && token < tile.end_token && column < tile.end_column;
        const uint4 bits = *reinterpret_cast<const uint4*>(staged + (at * 2 + (lane_id() % 2 ^ at / 4 % 2)) * 16);
        if (is_there) store_global_bits(reinterpret_cast<uint4*>(output(tile, token) + column), bits);
      }
      __syncwarp();
    }
  }
  // Halves of neighbouring fours of tokens are exchanged, so that eight tokens lie in all banks.
  WL_DEVICE static uint32_t staging(const uint8_t* staged, int token, int half) {
    return shared_address(staged) + (token * 2 + (half ^ token / 4 % 2)) * 16;
  }

  // Results of 32 or 8 bits: from registers, 32 bytes of a row at a time or less.
  template <int kBlocks>
  WL_DEVICE void write_singly(const float (&sums)[kBlocks][4], Tile tile, int row) const {
    const int first_row = row + lane_id() / 4;
    const Line rows[2] = {line_of_row(tile, first_row), line_of_row(tile, first_row + 8)};
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      forget(tile.first_column);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at_row = first_row + i / 2 * 8, at_column = block * 8 + lane_id() % 4 * 2 + i % 2;
        const int token = tile.first_token + (kSwapped ? at_column : at_row);
        const int column = tile.first_column + (kSwapped ? at_row : at_column);
        if (token >= tile.end_token || column >= tile.end_column) continue;
        output(tile, token)[column] = from_float<Out>(finish(sums[block][i], rows[i / 2], line_of_column(tile, at_column)));
      }
    }
  }
};

#endif

}  // namespace warploom::gemm
