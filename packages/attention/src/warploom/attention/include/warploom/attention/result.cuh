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

  // This thread's columns of a row.
  WL_DEVICE float* partial_out(int slot, int row) const {
    return params.partial_out + (int64_t(slot) * kTileRows + row) * Config::kValueDim + Part::column(0);
  }
  WL_DEVICE float* partial_lse(int slot) const { return params.partial_lse + int64_t(slot) * kTileRows; }

  // A row of the tile as the caller sees it.
  struct Place {
    int64_t row;
    int head;
    bool valid;
  };
  WL_DEVICE Place place(int row) const {
    const int packed = item.tile * item.work.tile_rows + row, query = params.group_size.divide(packed);
    const int64_t at = item.work.qo_start + query;
    const int head = item.head * int(params.group_size.divisor) + params.group_size.remainder(packed, query);
    return {at, head, query < item.work.qo_len && at < params.q_rows};
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

  WL_DEVICE T* row_of(const Place& to) const {
    return static_cast<T*>(params.out) + to.row * params.out_stride[0] + to.head * params.out_stride[1];
  }

  WL_DEVICE static void store(T* out, const float4& values, float factor) {
    Vec<T, 4> some;
    some[0] = from_float<T>(values.x * factor), some[1] = from_float<T>(values.y * factor);
    some[2] = from_float<T>(values.z * factor), some[3] = from_float<T>(values.w * factor);
    some.store(out);
  }

  // An item that no key is visible to.
  WL_DEVICE void write_nothing() const {
#pragma unroll 1
    for (int i = threadIdx.x; i < item.work.tile_rows * (Config::kValueDim / 4); i += kThreads) {
      const Place to = place(i / (Config::kValueDim / 4));
      if (!to.valid) continue;
      const int column = i % (Config::kValueDim / 4) * 4;
      store(row_of(to) + column, float4{0, 0, 0, 0}, 1.0f);
      if (column == 0) write_lse(to, negative_infinity());
    }
  }

  // Merges the partial results of the blocks that share the item, several at a time: each has to come from L2.
  WL_DEVICE void merge(const ItemShares& shares) const {
    constexpr int kLanes = Config::kValueDim / 4, kTogether = Config::kHasWide || Config::kValueDim > 128 ? 4 : 8;
    const int rows = min(item.work.tile_rows, item.work.qo_len * int(params.group_size.divisor) - item.tile * item.work.tile_rows);
#pragma unroll 1
    for (int i = threadIdx.x; i < rows * kLanes; i += kThreads) {
      const int row = i / kLanes, column = i % kLanes * 4;
      float4 sums = {0, 0, 0, 0};
      float most = negative_infinity(), total = 0.0f;
#pragma unroll 1
      for (int group = shares.first; group <= shares.last; group += kTogether) {
        float lse[kTogether];
        float4 values[kTogether];
#pragma unroll
        for (int j = 0; j < kTogether; ++j) {
          lse[j] = negative_infinity();
          if (group + j > shares.last) continue;
          const int64_t at = int64_t(slot_of(group + j, shares)) * kTileRows + row;
          lse[j] = __ldcg(params.partial_lse + at);
          values[j] = __ldcg(reinterpret_cast<const float4*>(params.partial_out + at * Config::kValueDim + column));
        }
        float next = most;
#pragma unroll
        for (const float each : lse) next = fmaxf(next, each);
        if (next == negative_infinity()) continue;
        const float factor = exp2_approx(most - next);
        most = next;
        total *= factor, sums.x *= factor, sums.y *= factor, sums.z *= factor, sums.w *= factor;
#pragma unroll
        for (int j = 0; j < kTogether; ++j) {
          if (lse[j] == negative_infinity()) continue;
          const float weight = exp2_approx(lse[j] - most);
          total += weight;
          sums.x += weight * values[j].x, sums.y += weight * values[j].y;
          sums.z += weight * values[j].z, sums.w += weight * values[j].w;
        }
      }
      const Place to = place(row);
      if (!to.valid) continue;
      float lse = total == 0.0f ? negative_infinity() : most + log2f(total);
      const float factor = total == 0.0f ? 0.0f : __fdividef(finish_row(to, lse), total);
      store(row_of(to) + column, sums, factor);
      if (column == 0) write_lse(to, lse);
    }
  }

  // A block's share of an item is the first of its two partial results if the group before has some of it too.
  WL_DEVICE int slot_of(int group, const ItemShares& shares) const {
    const int block = group * params.lanes + int(blockIdx.x) % params.lanes;
    return 2 * block + (group == shares.first ? 1 : 0);
  }
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

  // What a thread writes of a row: to the output if that is not null, else to the partial results.
  struct Row {
    typename Writer::T* out;
    float* partial;
    float factor;
  };

  WL_DEVICE void write(QueryTile<Config>& tile) {
    scale(tile);
    Row rows[kWarps / kWarpsOfRows];
#pragma unroll
    for (int block = 0; block < kWarps / kWarpsOfRows; ++block) rows[block] = start_row(block);
#pragma unroll
    for (int piece = 0; piece < Part::kPieces; ++piece) {
      stage(tile, piece);
      __syncthreads();
      write_columns(piece, rows);
      __syncthreads();
    }
  }

 private:
  // Makes the states shares of the rows' sums, which are left in `storage`.
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
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const RowSum all = sum_of(warp_id() / kWarpsOfRows, row + 8 * i);
      const float factor = all.total == 0.0f ? 0.0f : __fdividef(exp2_approx(tile.largest[i] - all.from), all.total);
#pragma unroll
      for (auto& block : tile.out) block[2 * i] *= factor, block[2 * i + 1] *= factor;
    }
  }

  // What the warps of a block of 16 rows have of a row, together: total * 2**from.
  struct RowSum {
    float from;
    float total;

    WL_DEVICE float lse() const { return total == 0.0f ? negative_infinity() : from + log2f(total); }
  };
  WL_DEVICE RowSum sum_of(int block, int row) const {
    const int first = block * kWarpsOfRows;
    float most = negative_infinity(), total = 0.0f;
#pragma unroll
    for (int warp = 0; warp < kWarpsOfRows; ++warp) most = fmaxf(most, storage.largest[first + warp][row]);
    const float from = most == negative_infinity() ? 0.0f : most;
#pragma unroll
    for (int warp = 0; warp < kWarpsOfRows; ++warp) {
      total += storage.sum[first + warp][row] * exp2_approx(storage.largest[first + warp][row] - from);
    }
    return {from, total};
  }

  // Writes the log-sum-exp of this thread's row in a block of 16.
  WL_DEVICE Row start_row(int block) const {
    const int row = block * kNarrowRows + Part::row();
    const bool is_mine = int(threadIdx.x) % Part::kLanes == 0;
    float lse = sum_of(block, Part::row()).lse();
    if (!is_whole) {
      if (is_mine) writer.partial_lse(slot)[row] = lse;
      return {nullptr, writer.partial_out(slot, row), 1.0f};
    }
    const auto to = writer.place(row);
    if (!to.valid) return {nullptr, nullptr, 0.0f};
    const float factor = writer.finish_row(to, lse);
    if (is_mine) writer.write_lse(to, lse);
    return {writer.row_of(to) + Part::column(0), nullptr, factor};
  }

  WL_DEVICE void stage(const QueryTile<Config>& tile, int piece) {
#pragma unroll
    for (int column = 0; column < kStagedColumns / 16; ++column) {
      const int of_all = piece * (kStagedColumns / 16) + column;
      if (of_all >= QueryTile<Config>::kColumns) continue;
      const float(&first)[4] = tile.out[2 * of_all];
      const float(&second)[4] = tile.out[2 * of_all + 1];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float* to = &storage.columns[warp_id()][lane_id() / 4 + 8 * i][column * 16];
        const int lane = lane_id() % 4;
        if constexpr (QueryTile<Config>::Load::kInterleaved) {
          *reinterpret_cast<float4*>(to + 4 * lane) = float4{first[2 * i], second[2 * i], first[2 * i + 1], second[2 * i + 1]};
        } else {
          *reinterpret_cast<float2*>(to + 2 * lane) = float2{first[2 * i], first[2 * i + 1]};
          *reinterpret_cast<float2*>(to + 8 + 2 * lane) = float2{second[2 * i], second[2 * i + 1]};
        }
      }
    }
  }

  WL_DEVICE void write_columns(int piece, const Row (&rows)[kWarps / kWarpsOfRows]) const {
    if (Part::column(piece) >= Config::kValueDim) return;
#pragma unroll
    for (int block = 0; block < kWarps / kWarpsOfRows; ++block) {
      float4 values = {0, 0, 0, 0};
#pragma unroll
      for (int warp = 0; warp < kWarpsOfRows; ++warp) {
        const float* from = &storage.columns[block * kWarpsOfRows + warp][Part::row()][Part::column(0)];
        const float4 mine = *reinterpret_cast<const float4*>(from);
        values.x += mine.x, values.y += mine.y, values.z += mine.z, values.w += mine.w;
      }
      if (rows[block].out) Writer::store(rows[block].out + piece * kStagedColumns, values, rows[block].factor);
      if (rows[block].partial) *reinterpret_cast<float4*>(rows[block].partial + piece * kStagedColumns) = values;
    }
  }
};

}  // namespace warploom::attention
