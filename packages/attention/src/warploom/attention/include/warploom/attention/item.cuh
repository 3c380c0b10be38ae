// What blocks do around the products of an item, whoever computes them.
#pragma once

#include "warploom/attention/params.cuh"
#include "warploom/convert.cuh"

namespace warploom::attention {

// A warp's copy of a cursor.
WL_DEVICE void copy_cursor(WorkCursor& to, const WorkCursor& from) {
  constexpr int kInts = sizeof(WorkCursor) / sizeof(int);
  static_assert(kInts <= kWarpSize, "a lane for each");
  if (lane_id() < kInts) reinterpret_cast<int*>(&to)[lane_id()] = reinterpret_cast<const int*>(&from)[lane_id()];
  __syncwarp();
}

// Rows of a tile that a warp has: those of its tensor cores' products.
constexpr int kWarpRows = 16;

// Rows of the item's tile that exist.
WL_DEVICE int rows_of(const AttentionParams& params, const WorkCursor& item) {
  return min(item.work.qo_len * int(params.group_size.divisor) - item.tile * item.work.tile_rows, item.work.tile_rows);
}

// One of them: a query of the request with one of its heads.
struct TileRow {
  int query;
  int head;

  WL_DEVICE static TileRow of(const AttentionParams& params, const WorkCursor& item, int row) {
    const int packed = item.tile * item.work.tile_rows + row, query = params.group_size.divide(packed);
    return {query, item.head * int(params.group_size.divisor) + params.group_size.remainder(packed, query)};
  }
};

// Tiles of keys that all queries of an item see: [first, end).
struct SeenKeys {
  int first;
  int end;

  template <class Config>
  WL_DEVICE static SeenKeys of(const AttentionParams& params, const WorkCursor& item) {
    const int before = item.work.first_position();
    int end = item.work.kv_len, first = 0;
    if (params.causal) end = min(end, item.work.first_query(item.tile, params.group_size) + before + 1);
    if (params.window_left >= 0) first = item.work.last_query(item.tile, params.group_size) + before - params.window_left;
    return {ceil_div(max(first, 0), Config::kTileKeys), end / Config::kTileKeys};
  }

  // Of the keys of a tile.
  WL_DEVICE bool hides_some(int tile) const { return tile < first || tile >= end; }
};

// After a barrier of all who have written a block's partial results of an item, by one of them: whether all other blocks that share
// the item have left theirs.
WL_DEVICE bool arrive_at_item(const AttentionParams& params, const ItemShares& shares) {
  __threadfence();
  int* arrivals = params.arrivals + shares.first * params.lanes + blockIdx.x % params.lanes;
  const bool is_last = atomicAdd(arrivals, 1) == shares.last - shares.first;
  if (is_last) *arrivals = 0;  // for the next launch
  __threadfence();
  return is_last;
}

// Rows of queries that belong to no request; by some threads of each block.
template <class Config>
WL_DEVICE void clear_padding_rows(const AttentionParams& params, int thread, int threads) {
  using T = typename Config::Out;
  const int heads = params.num_kv_heads * int(params.group_size.divisor);
#pragma unroll 1
  for (int64_t row = params.qo_indptr[params.batch] + blockIdx.x; row < params.q_rows; row += gridDim.x) {
#pragma unroll 1
    for (int i = thread; i < heads * Config::kValueDim; i += threads) {
      const int head = i / Config::kValueDim, column = i % Config::kValueDim;
      static_cast<T*>(params.out)[row * params.out_stride[0] + head * params.out_stride[1] + column] = from_float<T>(0.0f);
      if (column == 0 && params.lse) {
        params.lse[row * params.lse_stride[0] + head * params.lse_stride[1]] = negative_infinity();
      }
    }
  }
}

}  // namespace warploom::attention
