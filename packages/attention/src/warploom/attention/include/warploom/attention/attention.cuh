// Attention of a batch of requests, whatever their lengths: decodes, appends and prefills in one launch of persistent blocks, each
// of which walks through its share of the work (schedule.cuh).
//
// A block has four warps. Tiles of up to 16 query rows (decodes) are held by all of them, and each takes 16 of every 64 keys: they
// meet only at the item's end. Of longer tiles each warp has 16 rows and sees all keys.
#pragma once

#include "warploom/attention/result.cuh"

namespace warploom::attention {

template <class Config>
struct AttentionBlock {
  using Ring = KeyValueRing<Config>;
  using Writer = ResultWriter<Config>;

  const AttentionParams& params;
  ResultStorage& storage;
  Ring& ring;
  int64_t chunk;
  int stage;  // of the ring, that comes next

  // Whether some query of the item does not see every key of a tile.
  WL_DEVICE bool is_partial(const WorkCursor& item, int tile) const {
    const int first_key = tile * kTileKeys, last_key = first_key + kTileKeys - 1, before = item.work.first_position();
    bool result = last_key >= item.work.kv_len;
    if (params.causal) result |= last_key > item.work.first_query(item.tile) + before;
    if (params.window_left >= 0) result |= first_key < item.work.last_query(item.tile) + before - params.window_left;
    return result;
  }

  // kWarpsOfRows: warps that have the same rows.
  template <int kWarpsOfRows>
  WL_DEVICE void work_on(const WorkCursor& item) {
    constexpr int kKeys = kTileKeys / kWarpsOfRows;
    constexpr int kAtOnce = Config::kValueDim > 128 && kKeys > 32 ? 32 : kKeys;  // registers are short
    QueryTile<Config> tile(params, item, kWarpsOfRows == 1 ? warp_id() * kNarrowRows : 0);
    const int first_row = kWarpsOfRows == 1 ? 0 : warp_id() * kKeys;
#pragma unroll 1
    for (int keys = item.begin(), end = item.end(); keys < end; ++keys) {
      cp_async_wait<Config::kStages - 2>();
      if constexpr (kWarpsOfRows == 1) {
        __syncthreads();  // rows of all warps have come, and nobody reads those of the tile before
      } else {
        __syncwarp();
      }
      ring.copy_next();
#pragma unroll
      for (int row = first_row; row < first_row + kKeys; row += kAtOnce) {
        tile.template visit<kAtOnce>(ring, stage, row, keys * kTileKeys + row, is_partial(item, keys));
      }
      stage = stage == Config::kStages - 1 ? 0 : stage + 1;
    }
    const Writer writer{params, item};
    const ItemShares shares = ItemShares::of(blockIdx.x, chunk, item.at, item.key_tiles);
    const bool is_whole = shares.first == shares.last;
    ItemResult<Config, kWarpsOfRows>{storage, writer, is_whole, Writer::slot_of(blockIdx.x, shares)}.write(tile);
    if (!is_whole && is_last_of(shares)) writer.merge(shares);
  }

  // Whether all other blocks have left their results.
  WL_DEVICE bool is_last_of(const ItemShares& shares) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      const int others = shares.last - shares.first;
      storage.is_last = atomicAdd(params.arrivals + shares.first, 1) == others;
      if (storage.is_last) params.arrivals[shares.first] = 0;  // for the next launch
      __threadfence();
    }
    __syncthreads();
    return storage.is_last;
  }

  WL_DEVICE void work(const WorkStart& start) {
    WorkCursor item;
    item.open<Config>(params, start);
#pragma unroll 1
    for (; !item.done(); item.next<Config>(params)) {
      if (!item.takes_part()) continue;
      if (item.key_tiles == 0) {
        Writer{params, item}.write_nothing();
      } else if (Config::kHasWide && item.work.tile_rows == kWideRows) {
        if constexpr (Config::kHasWide) work_on<1>(item);
      } else {
        work_on<kWarps>(item);
      }
    }
  }
};

// Rows of queries that belong to no request.
template <class Config>
WL_DEVICE void clear_padding_rows(const AttentionParams& params) {
  using T = typename Config::Out;
  const int heads = params.num_kv_heads * params.group_size;
#pragma unroll 1
  for (int64_t row = params.qo_indptr[params.batch] + blockIdx.x; row < params.q_rows; row += gridDim.x) {
#pragma unroll 1
    for (int i = threadIdx.x; i < heads * Config::kValueDim; i += kThreads) {
      const int head = i / Config::kValueDim, column = i % Config::kValueDim;
      static_cast<T*>(params.out)[row * params.out_stride[0] + head * params.out_stride[1] + column] = from_float<T>(0.0f);
      if (column == 0 && params.lse) {
        params.lse[row * params.lse_stride[0] + head * params.lse_stride[1]] = negative_infinity();
      }
    }
  }
}

template <class Config>
__global__ void __launch_bounds__(kThreads, Config::kBlocksPerSm)
    attention_kernel(const __grid_constant__ AttentionParams params) {
  extern __shared__ __align__(128) uint8_t memory[];
  __shared__ ResultStorage storage;
  clear_padding_rows<Config>(params);
  const WorkStart start = params.starts[blockIdx.x];
  KeyValueRing<Config> ring(params, memory, start);
  AttentionBlock<Config>{params, storage, ring, start.chunk, 0}.work(start);
  cp_async_wait<0>();
}

}  // namespace warploom::attention
