// From a block's softmax states to outputs. Items that blocks share leave partial results, each with its log-sum-exp, which the
// last of the blocks to come merges, always in the same order.
#pragma once

#include "warploom/attention/softmax_rows.cuh"
#include "warploom/reduce.cuh"
#include "warploom/sync.cuh"
#include "warploom/vec.cuh"

namespace warploom::attention {

// Writes results of an item: where they are complete to the output, else to the block's partial results.
template <class Config>
struct ResultWriter {
  using T = typename Config::Out;
  static constexpr int kTileRows = Config::kMostRows;

  const AttentionParams& params;
  const WorkCursor& item;

  // A row of the tile as the caller sees it.
  struct Place {
    int64_t row;
    int head;
    bool valid;
  };
  WL_DEVICE Place place(int row) const {
    const TileRow of_tile = TileRow::of(params, item, row);
    const int64_t at = item.work.qo_start + of_tile.query;
    return {at, of_tile.head, of_tile.query < item.work.qo_len && at < params.q_rows};
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

  // Where a block leaves a row: at `out`, or else at `partial`, or nowhere.
  struct Row {
    T* out;
    float* partial;
    float factor;

    WL_DEVICE void store(int column, const float4& values) const {
      if (out) ResultWriter::store(out + column, values, factor);
      if (partial) *reinterpret_cast<float4*>(partial + column) = values;
    }
  };

  // A row of the tile; one of its threads writes its log-sum-exp there. `slot`: of partial results, -1 for results that are complete.
  WL_DEVICE Row start_row(int slot, int row, float lse, bool writes_lse) const {
    if (slot >= 0) {
      if (row >= rows_of(params, item)) return {nullptr, nullptr, 0.0f};
      const int64_t at = int64_t(slot) * kTileRows + row;
      if (writes_lse) params.partial_lse[at] = lse;
      return {nullptr, params.partial_out + at * Config::kValueDim, 1.0f};
    }
    const Place to = place(row);
    if (!to.valid) return {nullptr, nullptr, 0.0f};
    const float factor = finish_row(to, lse);
    if (writes_lse) write_lse(to, lse);
    return {row_of(to), nullptr, factor};
  }

  WL_DEVICE static void store(T* out, const float4& values, float factor) {
    Vec<T, 4> some;
    some[0] = from_float<T>(values.x * factor), some[1] = from_float<T>(values.y * factor);
    some[2] = from_float<T>(values.z * factor), some[3] = from_float<T>(values.w * factor);
    some.store(out);
  }

  // An item that no key is visible to.
  WL_DEVICE void write_nothing(int thread, int threads) const {
#pragma unroll 1
    for (int i = thread; i < item.work.tile_rows * (Config::kValueDim / 4); i += threads) {
      const Place to = place(i / (Config::kValueDim / 4));
      if (!to.valid) continue;
      const int column = i % (Config::kValueDim / 4) * 4;
      store(row_of(to) + column, float4{0, 0, 0, 0}, 1.0f);
      if (column == 0) write_lse(to, negative_infinity());
    }
  }

  // What some blocks have left of a row, of four columns.
  struct Merged {
    float4 sums = {0, 0, 0, 0};
    float most = negative_infinity(), total = 0.0f;

    template <int kBlocks>
    WL_DEVICE void add(const float (&lse)[kBlocks], const float4 (&values)[kBlocks]) {
      float next = most;
#pragma unroll
      for (const float each : lse) next = fmaxf(next, each);
      if (next == negative_infinity()) return;
      const float factor = exp2_approx(most - next);
      most = next;
      total *= factor, sums.x *= factor, sums.y *= factor, sums.z *= factor, sums.w *= factor;
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) {
        if (lse[i] == negative_infinity()) continue;
        const float weight = exp2_approx(lse[i] - most);
        total += weight;
        sums.x += weight * values[i].x, sums.y += weight * values[i].y;
        sums.z += weight * values[i].z, sums.w += weight * values[i].w;
      }
    }
  };

  // Merges the partial results of the blocks that share the item, several at a time: each has to come from L2.
  WL_DEVICE void merge(const ItemShares& shares, int thread, int threads) const {
    constexpr int kLanes = Config::kValueDim / 4;
    constexpr int kRows = Config::kHasWide ? 2 : 1, kBlocks = Config::kHasWide ? 3 : Config::kValueDim > 128 ? 4 : 8;
    const int rows = rows_of(params, item);
#pragma unroll 1
    for (int first = thread; first < rows * kLanes; first += kRows * threads) {
      Merged merged[kRows];
#pragma unroll 1
      for (int group = shares.first; group <= shares.last; group += kBlocks) {
        float lse[kRows][kBlocks];
        float4 values[kRows][kBlocks];
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          const int row = (first + i * threads) / kLanes, column = (first + i * threads) % kLanes * 4;
#pragma unroll
          for (int j = 0; j < kBlocks; ++j) {
            lse[i][j] = negative_infinity();
            if (row >= rows || group + j > shares.last) continue;
            const int64_t at = int64_t(slot_of(group + j, shares)) * kTileRows + row;
            lse[i][j] = __ldcg(params.partial_lse + at);
            values[i][j] = __ldcg(reinterpret_cast<const float4*>(params.partial_out + at * Config::kValueDim + column));
          }
        }
#pragma unroll
        for (int i = 0; i < kRows; ++i) merged[i].add(lse[i], values[i]);
      }
#pragma unroll
      for (int i = 0; i < kRows; ++i) write_merged(merged[i], (first + i * threads) / kLanes, (first + i * threads) % kLanes * 4);
    }
  }

  // By threads 0 to `threads` - 1 of a block, who meet at `barrier`, once they have written the block's partial results.
  WL_DEVICE void merge_if_last(const ItemShares& shares, int barrier, int threads) const {
    sync_threads_of(barrier, threads);
    const bool is_last = any_of_threads(barrier, threads, threadIdx.x == 0 && arrive_at_item(params, shares));
    if (is_last) merge(shares, threadIdx.x, threads);
  }

  WL_DEVICE void write_merged(const Merged& merged, int row, int column) const {
    const Place to = place(row);
    if (!to.valid || row >= item.work.tile_rows) return;
    float lse = merged.total == 0.0f ? negative_infinity() : merged.most + log2f(merged.total);
    const float factor = merged.total == 0.0f ? 0.0f : __fdividef(finish_row(to, lse), merged.total);
    store(row_of(to) + column, merged.sums, factor);
    if (column == 0) write_lse(to, lse);
  }

  // A block's share of an item is the first of its two partial results if the group before has some of it too.
  WL_DEVICE int slot_of(int group, const ItemShares& shares) const {
    if (shares.first == shares.last) return -1;
    const int block = group * params.lanes + int(blockIdx.x) % params.lanes;
    return 2 * block + (group == shares.first ? 1 : 0);
  }
};

}  // namespace warploom::attention
