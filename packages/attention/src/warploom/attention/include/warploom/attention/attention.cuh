// Attention of a batch of requests, whatever their lengths: decodes, appends and prefills in one launch of persistent blocks, each
// of which walks through its share of the work (schedule.cuh).
//
// A block has four warps. Tiles of up to 16 query rows (decodes) are held by all of them, and each takes a quarter of the keys of a
// tile: they meet only at the item's end. Of longer tiles each warp has 16 rows and sees all keys.
#pragma once

#include "warploom/attention/item.cuh"
#include "warploom/attention/own_rows_result.cuh"
#include "warploom/attention/query_tile.cuh"
#include "warploom/attention/shared_rows_result.cuh"

namespace warploom::attention {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;

// Of the warps that have the same rows.
struct BlockTeam {
  static constexpr int kWarps = attention::kWarps;
  static constexpr int kColumns = 32;

  WL_DEVICE static void sync() { __syncthreads(); }
};

// Sizes of the tiles.
template <class Base, bool kHasRopeTurns>
struct PortableConfig : Base {
  static constexpr bool kHasRope = kHasRopeTurns;
  using Rotation = conditional_t<kHasRope, RowRotation<typename Base::Query, Base::kHeadDim>, NoRotation>;
  static constexpr bool kCalls = true;
  static constexpr int kMostAddresses = 1 << 10;
  static constexpr int kMostRows = Base::kHasWide ? 64 : kWarpRows;
};

template <class Config>
struct AttentionBlock {
  using Ring = KeyValueRing<Config>;
  using Writer = ResultWriter<Config>;

  const AttentionParams& params;
  SharedRows<BlockTeam>& storage;
  Ring& ring;
  const typename Config::Rotation& rotation;
  int64_t chunk;
  int stage;  // of the ring, that comes next

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
    constexpr int kKeys = Config::kTileKeys / kWarpsOfRows;
    constexpr bool kIsShortOfRegisters = Config::kHeadDim > 128 || Config::Variant::kHasLogits || Config::Variant::kHasMask;
    constexpr int kMost = kIsShortOfRegisters ? 32 : 64, kAtOnce = kKeys < kMost ? kKeys : kMost;
    // All are done with the item before, which may have had tiles whose keys are read by all.
    if constexpr (Config::kHasWide || Config::kHasRope) sync_readers<Config::kHasWide ? 1 : kWarps>();
    QueryTile<Config> tile(params, item);
    if constexpr (Config::kHasRope) turn_queries(tile, item, kWarpsOfRows == 1 ? warp_id() * kWarpRows : 0);
    const int first_row = kWarpsOfRows == 1 ? 0 : warp_id() * kKeys;
    const SeenKeys seen = SeenKeys::of<Config>(params, item);
#pragma unroll 1
    for (int keys = item.begin(), end = item.end(); keys < end; ++keys) {
      sync_readers<kWarpsOfRows>();  // nobody reads the tile before any more
      ring.fill();
      cp_async_wait<Config::kStages - 1>();
      if constexpr (Config::kHasRope) turn_keys(keys * Config::kTileKeys);
      sync_readers<kWarpsOfRows>();  // rows of all who copy have come
#pragma unroll 1
      for (int row = first_row; row < first_row + kKeys; row += kAtOnce) {
        tile.template visit<kAtOnce>(ring, stage, row, keys * Config::kTileKeys + row, seen.hides_some(keys));
      }
      stage = stage == Config::kStages - 1 ? 0 : stage + 1;
      ring.release();
    }
    const Writer writer{params, item};
    const int group = int(blockIdx.x) / params.lanes;
    const ItemShares shares = ItemShares::of(group, chunk, item);
    const int slot = writer.slot_of(group, shares);
    if constexpr (kWarpsOfRows == 1) {
      OwnRowsResult<Config, QueryTile<Config>>{writer, slot, warp_id() * kWarpRows}.write(tile);
    } else {
      SharedRowsResult<Config, QueryTile<Config>, BlockTeam>{storage, writer, slot}.write(tile);
    }
    if (slot >= 0 && is_last_of(shares)) writer.merge(shares, threadIdx.x, kThreads);
  }

  // Rotates the item's rows from `first` on. Each warp does it for itself, by way of its rows of the ring's next slot, where
  // nothing is on its way at an item's start; but queries that are not held lie in `storage` until results are written.
  WL_DEVICE void turn_queries(QueryTile<Config>& tile, const WorkCursor& item, int first) {
    using Rows = typename Config::Rotation::Rows;
    if constexpr (QueryTile<Config>::kHoldsQueries) {
      uint8_t* rows = ring.key_operands(ring.slot) + warp_id() * kWarpRows * Rows::kPitch;
      rotation.template turn_rows<kWarpRows>(rows, 0, QueriesToTurn<Config>{params, item, first});
      __syncwarp();
      tile.take_queries(rows);
    } else {
      static_assert(!Config::kHasWide && kWarpRows * Rows::kPitch <= sizeof(storage.columns), "one tile of all warps");
      constexpr int kOwn = kWarpRows / kWarps;
      const int first_own = warp_id() * kOwn;
      auto* rows = reinterpret_cast<uint8_t*>(storage.columns);
      rotation.template turn_rows<kOwn>(rows, first_own, QueriesToTurn<Config>{params, item, first_own});
      if (Config::kHeadDim % 16 != 0 && lane_id() < kOwn) {  // what a step of the product has beyond them
        *reinterpret_cast<uint4*>(rows + Rows::at(first_own + lane_id(), Config::kHeadDim)) = uint4{0, 0, 0, 0};
      }
      __syncthreads();
      tile.take_queries(rows);
    }
  }

  // The rows of keys that the warp has copied, of a tile whose first key is `first_key` of the request.
  WL_DEVICE void turn_keys(int first_key) {
    using Keys = KeysToTurn<Operands<typename Config::Query, typename Config::Kv>, typename Ring::KeyRows>;
    constexpr int kRows = Ring::Rows::kRows;
    const int first_row = warp_id() * kRows;
    __syncwarp();  // rows of all lanes have come
    rotation.template turn_rows<kRows>(ring.key_operands(stage), first_row, Keys{ring.keys(stage), first_row, first_key + first_row});
  }

  // Whether all other blocks have left their results.
  WL_DEVICE bool is_last_of(const ItemShares& shares) {
    __syncthreads();
    return __syncthreads_or(threadIdx.x == 0 && arrive_at_item(params, shares));
  }

  // `item` is the warp's own, in shared memory.
  WL_DEVICE void work(WorkCursor& item) {
#pragma unroll 1
    for (; !item.done(); advance<Config::kCalls>(item, params)) {
      if (!item.takes_part()) continue;
      if (item.keys.count == 0) {
        Writer{params, item}.write_nothing(threadIdx.x, kThreads);
      } else if (Config::kHasWide && item.work.tile_rows > kWarpRows) {
        if constexpr (Config::kHasWide) work_on<1>(item);
      } else {
        work_on<kWarps>(item);
      }
    }
  }
};

// `Rope`: `RopeTurns` where queries and keys are rotated, else nothing.
template <class Base, class... Rope>
__global__ void __launch_bounds__(kThreads, Base::kBlocksPerSm)
    attention_kernel(const __grid_constant__ AttentionParams params, const __grid_constant__ Rope... rope) {
  using Config = PortableConfig<Base, sizeof...(Rope) == 1>;
  extern __shared__ __align__(128) uint8_t memory[];
  __shared__ SharedRows<BlockTeam> storage;
  __shared__ typename KeyValueRing<Config>::Rows::State copies[kWarps];  // each warp goes its own way
  __shared__ WorkCursor items[kWarps];
  const auto rotation = Config::Rotation::start(rope...);
  const WorkStart& start = params.starts[blockIdx.x];
  copy_cursor(copies[warp_id()].cursor, start.cursor);
  copy_cursor(items[warp_id()], start.cursor);
  const int64_t chunk = start.chunk;
  KeyValueRing<Config> ring(params, memory, copies[warp_id()]);
  clear_padding_rows<Config>(params, threadIdx.x, int(blockDim.x));
  AttentionBlock<Config>{params, storage, ring, rotation, chunk, 0}.work(items[warp_id()]);
  cp_async_wait<0>();
}

}  // namespace warploom::attention
