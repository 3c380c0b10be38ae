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

  // Tiles of keys that all queries of an item see: [first, end).
  struct Seen {
    int first, end;
  };
  WL_DEVICE Seen seen_by_all(const WorkCursor& item) const {
    const int before = item.work.first_position();
    int end = item.work.kv_len, first = 0;
    if (params.causal) end = min(end, item.work.first_query(item.tile, params.group_size) + before + 1);
    if (params.window_left >= 0) first = item.work.last_query(item.tile, params.group_size) + before - params.window_left;
    return {ceil_div(max(first, 0), kTileKeys), end / kTileKeys};
  }

  // Of those who read what a warp copies.
  template <int kWarpsOfRows>
  WL_DEVICE static void sync_readers() {
    if constexpr (kWarpsOfRows == 1) {
      __syncthreads();
    } else {
      __syncwarp();
    }
  }

  // kWarpsOfRows: warps that have the same rows.
  template <int kWarpsOfRows>
  WL_DEVICE void work_on(const WorkCursor& item) {
    constexpr int kKeys = kTileKeys / kWarpsOfRows;
    constexpr bool kIsShortOfRegisters = Config::kHeadDim > 128 || Config::Variant::kHasLogits;
    constexpr int kAtOnce = kIsShortOfRegisters && kKeys > 32 ? 32 : kKeys;
    QueryTile<Config> tile(params, item, kWarpsOfRows == 1 ? warp_id() * kNarrowRows : 0);
    const int first_row = kWarpsOfRows == 1 ? 0 : warp_id() * kKeys;
    const Seen seen = seen_by_all(item);
#pragma unroll 1
    for (int keys = item.begin(), end = item.end(); keys < end; ++keys) {
      sync_readers<kWarpsOfRows>();  // nobody reads the tile before any more
      ring.fill();
      cp_async_wait<Config::kStages - 1>();
      sync_readers<kWarpsOfRows>();  // rows of all who copy have come
      const bool is_partial = keys < seen.first || keys >= seen.end;
#pragma unroll 1
      for (int row = first_row; row < first_row + kKeys; row += kAtOnce) {
        tile.template visit<kAtOnce>(ring, stage, row, keys * kTileKeys + row, is_partial);
      }
      stage = stage == Config::kStages - 1 ? 0 : stage + 1;
      ring.release();
    }
    const Writer writer{params, item};
    const int group = int(blockIdx.x) / params.lanes;
    const ItemShares shares = ItemShares::of(group, chunk, item);
    const bool is_whole = shares.first == shares.last;
    ItemResult<Config, kWarpsOfRows>{storage, writer, is_whole, writer.slot_of(group, shares)}.write(tile);
    if (!is_whole && is_last_of(shares)) writer.merge(shares);
  }

  // Whether all other blocks have left their results.
  WL_DEVICE bool is_last_of(const ItemShares& shares) {
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();
      const int others = shares.last - shares.first;
      int* arrivals = params.arrivals + shares.first * params.lanes + blockIdx.x % params.lanes;
      storage.is_last = atomicAdd(arrivals, 1) == others;
      if (storage.is_last) *arrivals = 0;  // for the next launch
      __threadfence();
    }
    __syncthreads();
    return storage.is_last;
  }

  // `item` is the warp's own, in shared memory.
  WL_DEVICE void work(WorkCursor& item) {
#pragma unroll 1
    for (; !item.done(); advance(item, params)) {
      if (!item.takes_part()) continue;
      if (item.keys.count == 0) {
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
  const int heads = params.num_kv_heads * int(params.group_size.divisor);
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
  __shared__ CopyState copies[kWarps];  // each warp goes its own way
  __shared__ WorkCursor items[kWarps];
  const WorkStart& start = params.starts[blockIdx.x];
  constexpr int kInts = sizeof(WorkCursor) / sizeof(int);
  if (lane_id() < kInts) {
    const int value = reinterpret_cast<const int*>(&start.cursor)[lane_id()];
    reinterpret_cast<int*>(&copies[warp_id()].cursor)[lane_id()] = value;
    reinterpret_cast<int*>(&items[warp_id()])[lane_id()] = value;
  }
  const int64_t chunk = start.chunk;
  __syncwarp();
  KeyValueRing<Config> ring(params, memory, copies[warp_id()]);
  clear_padding_rows<Config>(params);
  AttentionBlock<Config>{params, storage, ring, chunk, 0}.work(items[warp_id()]);
  cp_async_wait<0>();
}

}  // namespace warploom::attention
