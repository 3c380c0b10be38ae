// From a block's softmax states to outputs. Items that blocks share leave partial results, each with its log-sum-exp, which the
// last of the blocks to come merges, always in the same order.
#pragma once

#include "warploom/attention/query_tile.cuh"
#include "warploom/convert.cuh"
#include "warploom/vec.cuh"

namespace warploom::attention {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;

// Columns of outputs that go through shared memory at a time, for rows of kNarrowRows of each warp.
constexpr int kStagedColumns = 32;

struct ResultStorage {
  float columns[kWarps][kNarrowRows][kStagedColumns + 4];
  float largest[kWarps][kNarrowRows];
  float sum[kWarps][kNarrowRows];
  float lse[kWarps][kNarrowRows];  // of rows, base 2
  bool is_last;
};

// A thread's part of a row of outputs: 4 columns of every kStagedColumns.
template <class Config>
struct RowPart {
  static constexpr int kPieces = ceil_div(Config::kValueDim, kStagedColumns);
  static constexpr int kLanes = kStagedColumns / 4;  // threads of a row
  static_assert(kThreads / kLanes == kNarrowRows, "a thread for each piece");

  WL_DEVICE static int row() { return int(threadIdx.x) / kLanes; }
  WL_DEVICE static int column(int piece) { return piece * kStagedColumns + int(threadIdx.x) % kLanes * 4; }
};

// Writes results of an item: where they are complete to the output, else to the block's partial results.
template <class Config>
struct ResultWriter {
  using T = typename Config::Out;
  using Part = RowPart<Config>;
  static constexpr int kTileRows = Config::kHasWide ? kWideRows : kNarrowRows;

  const AttentionParams& params;
  const WorkCursor& item;

  WL_DEVICE float* partial_out(int slot) const {
    return params.partial_out + int64_t(slot) * kTileRows * Config::kValueDim;
  }
  WL_DEVICE float* partial_lse(int slot) const { return params.partial_lse + int64_t(slot) * kTileRows; }

  WL_DEVICE void write_partial(int slot, int row, int column, const float4& values) const {
    if (column >= Config::kValueDim) return;
    *reinterpret_cast<float4*>(partial_out(slot) + row * Config::kValueDim + column) = values;
  }

  // A row of the tile as the caller sees it.
  struct Place {
    int64_t row;
    int head;
    bool valid;
  };
  WL_DEVICE Place place(int row) const {
    const int packed = item.tile * item.work.tile_rows + row, query = packed / params.group_size;
    const int64_t at = item.work.qo_start + query;
    return {at, item.head * params.group_size + packed % params.group_size, query < item.work.qo_len && at < params.q_rows};
  }

  // Sinks and scales, which do not depend on columns: what to multiply the outputs by, given the log-sum-exp of the keys.
  WL_DEVICE float finish_row(const Place& to, float& lse) const {
    float factor = params.value_scale;
    if (params.value_scales) factor *= params.value_scales[to.head * params.value_scales_step];
    if (params.sinks && lse > negative_infinity()) {
      const float sink = params.sinks[to.head] * kLog2e, most = fmaxf(lse, sink);
      const float total = most + log2f(exp2f(lse - most) + exp2f(sink - most));
      factor *= exp2f(lse - total);
      lse = total;
    }
    return factor;
  }

  WL_DEVICE void write_lse(const Place& to, float lse) const {
    if (params.lse) params.lse[to.row * params.lse_stride[0] + to.head * params.lse_stride[1]] = lse * params.lse_unit;
  }

  WL_DEVICE void write(const Place& to, int column, const float4& values, float factor) const {
    if (!to.valid || column >= Config::kValueDim) return;
    Vec<T, 4> some;
    some[0] = from_float<T>(values.x * factor), some[1] = from_float<T>(values.y * factor);
    some[2] = from_float<T>(values.z * factor), some[3] = from_float<T>(values.w * factor);
    some.store(static_cast<T*>(params.out) + to.row * params.out_stride[0] + to.head * params.out_stride[1] + column);
  }

  // An item that no key is visible to.
  WL_DEVICE void write_nothing() const {
    for (int row = Part::row(); row < item.work.tile_rows; row += kNarrowRows) {
      const Place to = place(row);
      for (int piece = 0; piece < Part::kPieces; ++piece) write(to, Part::column(piece), float4{0, 0, 0, 0}, 1.0f);
      if (to.valid && int(threadIdx.x) % Part::kLanes == 0) write_lse(to, negative_infinity());
    }
  }

  // Merges the partial results of the blocks that share the item.
  WL_DEVICE void merge(const ItemShares& shares) const {
#pragma unroll 1
    for (int row = Part::row(); row < item.work.tile_rows; row += kNarrowRows) {
      const Place to = place(row);
      float most = negative_infinity(), total = 0.0f;
      for (int block = shares.first; block <= shares.last; ++block) {
        most = fmaxf(most, __ldcg(partial_lse(slot_of(block, shares)) + row));
      }
      float4 sums[Part::kPieces] = {};
      if (most > negative_infinity()) {
#pragma unroll 1
        for (int block = shares.first; block <= shares.last; ++block) {
          const int slot = slot_of(block, shares);
          const float weight = exp2_approx(__ldcg(partial_lse(slot) + row) - most);
          total += weight;
          const float* from = partial_out(slot) + row * Config::kValueDim;
#pragma unroll
          for (int piece = 0; piece < Part::kPieces; ++piece) {
            const int column = Part::column(piece);
            if (column >= Config::kValueDim) continue;
            const float4 values = __ldcg(reinterpret_cast<const float4*>(from + column));
            sums[piece].x += weight * values.x, sums[piece].y += weight * values.y;
            sums[piece].z += weight * values.z, sums[piece].w += weight * values.w;
          }
        }
      }
      float lse = total > 0.0f ? most + log2f(total) : most == most ? negative_infinity() : most;
      const float factor = total > 0.0f ? finish_row(to, lse) / total : 0.0f;
      for (int piece = 0; piece < Part::kPieces; ++piece) write(to, Part::column(piece), sums[piece], factor);
      if (to.valid && int(threadIdx.x) % Part::kLanes == 0) write_lse(to, lse);
    }
  }

  // A block's share of an item is the first of its two partial results if the block before has some of it too.
  WL_DEVICE static int slot_of(int block, const ItemShares& shares) { return 2 * block + (block == shares.first ? 1 : 0); }
};

// Puts the warps' states together and writes them. kWarpsOfRows: warps that have the same rows, and different keys.
template <class Config, int kWarpsOfRows>
struct ItemResult {
  using Part = RowPart<Config>;
  using Writer = ResultWriter<Config>;

  ResultStorage& storage;
  const Writer& writer;
  bool is_whole;
  int slot;

  WL_DEVICE void write(QueryTile<Config>& tile) {
    scale(tile);
    float factors[kWarps / kWarpsOfRows];
    write_rows(factors);
#pragma unroll
    for (int piece = 0; piece < Part::kPieces; ++piece) {
      stage(tile, piece);
      __syncthreads();
      write_columns(piece, factors);
      __syncthreads();
    }
  }

 private:
  // Makes the states shares of the rows' sums, and `storage.lse` what the rows have.
  WL_DEVICE void scale(QueryTile<Config>& tile) {
    tile.finish_sums();
    const int row = lane_id() / 4;
    if (lane_id() % 4 == 0) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        storage.largest[warp_id()][row + 8 * i] = tile.largest[i];
        storage.sum[warp_id()][row + 8 * i] = tile.sum[i];
      }
    }
    __syncthreads();
    const int first = warp_id() / kWarpsOfRows * kWarpsOfRows;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float most = negative_infinity(), total = 0.0f;
#pragma unroll
      for (int warp = 0; warp < kWarpsOfRows; ++warp) most = fmaxf(most, storage.largest[first + warp][row + 8 * i]);
      const float from = most == negative_infinity() ? 0.0f : most;
#pragma unroll
      for (int warp = 0; warp < kWarpsOfRows; ++warp) {
        total += storage.sum[first + warp][row + 8 * i] * exp2_approx(storage.largest[first + warp][row + 8 * i] - from);
      }
      const float factor = total == 0.0f ? 0.0f : exp2_approx(tile.largest[i] - from) / total;
      if (lane_id() % 4 == 0) storage.lse[warp_id()][row + 8 * i] = total == 0.0f ? negative_infinity() : from + log2f(total);
#pragma unroll
      for (auto& block : tile.out) block[2 * i] *= factor, block[2 * i + 1] *= factor;
    }
    __syncthreads();
  }

  WL_DEVICE void write_rows(float (&factors)[kWarps / kWarpsOfRows]) const {
#pragma unroll
    for (int block = 0; block < kWarps / kWarpsOfRows; ++block) {
      const int row = block * kNarrowRows + Part::row();
      const bool is_mine = int(threadIdx.x) % Part::kLanes == 0;
      float lse = storage.lse[block * kWarpsOfRows][Part::row()];
      factors[block] = 1.0f;
      if (is_whole) {
        const auto to = writer.place(row);
        if (!to.valid) continue;
        factors[block] = writer.finish_row(to, lse);
        if (is_mine) writer.write_lse(to, lse);
      } else if (is_mine) {
        writer.partial_lse(slot)[row] = lse;
      }
    }
  }

  WL_DEVICE void stage(const QueryTile<Config>& tile, int piece) {
#pragma unroll
    for (int block = 0; block < kStagedColumns / 8; ++block) {
      const int of_all = piece * (kStagedColumns / 8) + block;
      if (of_all >= 2 * QueryTile<Config>::kColumns) continue;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float* to = &storage.columns[warp_id()][lane_id() / 4 + 8 * i][block * 8 + lane_id() % 4 * 2];
        *reinterpret_cast<float2*>(to) = float2{tile.out[of_all][2 * i], tile.out[of_all][2 * i + 1]};
      }
    }
  }

  WL_DEVICE void write_columns(int piece, const float (&factors)[kWarps / kWarpsOfRows]) const {
    const int row = Part::row(), column = Part::column(piece);
#pragma unroll
    for (int block = 0; block < kWarps / kWarpsOfRows; ++block) {
      float4 values = {0, 0, 0, 0};
#pragma unroll
      for (int warp = 0; warp < kWarpsOfRows; ++warp) {
        const float* from = &storage.columns[block * kWarpsOfRows + warp][row][column % kStagedColumns];
        const float4 mine = *reinterpret_cast<const float4*>(from);
        values.x += mine.x, values.y += mine.y, values.z += mine.z, values.w += mine.w;
      }
      const int of_tile = block * kNarrowRows + row;
      if (is_whole) {
        writer.write(writer.place(of_tile), column, values, factors[block]);
      } else {
        writer.write_partial(slot, of_tile, column, values);
      }
    }
  }
};

}  // namespace warploom::attention
