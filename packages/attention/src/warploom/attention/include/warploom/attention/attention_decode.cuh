// Attention of requests with up to 16 query rows each on Hopper: what counts is that memory is read without a pause.
//
// One warp of a block copies tiles of keys and values by TMA, as far ahead as there is room, also from one item to the next. The
// others all have the item's rows in registers, and each takes its part of every tile's keys: they meet only at the item's end, as
// in attention.cuh, whose schedule, partial results and merge these are.
#pragma once

#include "warploom/attention/query_tile.cuh"
#include "warploom/attention/shared_rows_result.cuh"
#include "warploom/ring.cuh"
#include "warploom/swizzled_rows.cuh"
#include "warploom/sync.cuh"
#include "warploom/tma.cuh"

namespace warploom::attention {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <class Base>
struct DecodeConfig : Base {
  static constexpr bool kCalls = true;
  static constexpr bool kHasWide = false;
  static constexpr bool kHasRope = false;
  using Rotation = NoRotation;
  static constexpr int kMostRows = kWarpRows;
  static constexpr int kKeys = Base::kTileKeys / Base::kWarps;     // of a tile, that a warp takes
  static constexpr int kBoxes = Base::kTileKeys / Base::kBoxRows;  // of a tile, each in one page
  static_assert(kKeys % 16 == 0 && Base::kBoxRows % 16 == 0 && kWarpSize % kBoxes == 0, "what a product takes lies in one box");
};

// Keys or values of a tile: box by box, as TMA brings them.
template <class Config, int kDim>
struct BoxRows : SwizzledRows<Config::kBoxRows, kDim, typename Config::Kv> {
  using Box = SwizzledRows<Config::kBoxRows, kDim, typename Config::Kv>;
  static constexpr int kTileBytes = Config::kBoxes * Box::kBytes;
  // One copy brings whole rows: 1.5 % faster than column after column.
  static constexpr bool kAreWhole = kDim % Box::kColumnElements == 0;
  static constexpr int kCopies = kAreWhole ? 1 : Box::kColumns;  // of a box

  WL_DEVICE static constexpr int rows_on(int rows) {
    return rows / Config::kBoxRows * Box::kBytes + rows % Config::kBoxRows * Box::kPitch;
  }

  WL_DEVICE static void copy(uint8_t* tile, int box, int number, const TensorMap* map, uint64_t* full, int row, int head, int page) {
    uint8_t* to = tile + box * Box::kBytes;
    if constexpr (kAreWhole) {
      tma_load_5d(to, map, full, 0, row, 0, head, page);
    } else {
      tma_load_4d(to + number * Box::kColumnBytes, map, full, number * Box::kColumnElements, row, head, page);
    }
  }
};

// Dynamic shared memory: stages of keys and values.
template <class Config>
struct DecodeKeyValues {
  using KeyOperand = typename Config::Kv;
  using KeyOperandRows = BoxRows<Config, Config::kHeadDim>;
  using ValueRows = BoxRows<Config, Config::kValueDim>;
  static constexpr int kStageBytes = KeyOperandRows::kTileBytes + ValueRows::kTileBytes;

  uint8_t* memory;

  WL_DEVICE uint8_t* key_operands(int stage) const { return memory + stage * kStageBytes; }
  WL_DEVICE uint8_t* values(int stage) const { return key_operands(stage) + KeyOperandRows::kTileBytes; }

  // Values from one row of a tile to another become 0, by a warp: they are not the request's, and may be anything.
  WL_DEVICE void clear_values(int stage, int first_row, int end_row) const {
    constexpr int kPieces = ValueRows::kPieces;
#pragma unroll 1
    for (int i = first_row * kPieces + lane_id(); i < end_row * kPieces; i += kWarpSize) {
      const int row = i / kPieces;
      uint8_t* to = values(stage) + ValueRows::rows_on(row / 8 * 8) + ValueRows::offset(row % 8, i % kPieces);
      *reinterpret_cast<uint4*>(to) = uint4{0, 0, 0, 0};
    }
    fence_async_proxy();  // TMA writes there next
    __syncwarp();
  }
};

constexpr int kDecodeBarrier = 1;  // of the warps that compute

// What a warp looks up for every tile, because registers are few.
struct ItemEnds {
  SeenKeys seen;
  int end;
};

template <class Config>
struct DecodeStorage {
  struct Team {
    static constexpr int kWarps = Config::kWarps;
    static constexpr int kColumns = 32;

    WL_DEVICE static void sync() { sync_threads_of(kDecodeBarrier, kWarps * kWarpSize); }
  };

  Ring<Config::kStages> ring;
  WorkCursor items[Config::kWarps + 1];  // each warp goes its own way
  ItemEnds ends[Config::kWarps];         // of the items that they are at
  int64_t chunk;                         // of the schedule
  SharedRows<Team> rows;
};

// The warp that copies.
template <class Config>
struct DecodeCopies {
  using KeyValues = DecodeKeyValues<Config>;
  using KeyRows = typename KeyValues::KeyOperandRows;
  using ValueRows = typename KeyValues::ValueRows;

  const AttentionParams& params;
  const TensorMap* keys;
  const TensorMap* values;
  Ring<Config::kStages>& ring;
  KeyValues tiles;
  RingPlace<Config::kStages> place;

  WL_DEVICE void work(WorkCursor& item) {
#pragma unroll 1
    for (; !item.done(); advance<Config::kCalls>(item, params)) {
      const int end = item.end();
      int tile = item.begin();
      if (tile >= end) continue;
      Boxes now = Boxes::of(params, item, tile * Config::kBoxes / kWarpSize * kWarpSize);
      Boxes next = Boxes::of(params, item, now.first + kWarpSize);
#pragma unroll 1
      for (; tile < end; ++tile, place.next()) {
        if (tile * Config::kBoxes >= next.first) {
          now = next;
          next = Boxes::of(params, item, now.first + kWarpSize);
        }
        copy(item, tile, now);
      }
    }
  }

 private:
  // Where boxes of a request lie, from the first on: one that each lane has looked up.
  struct Boxes {
    int first;
    int page;
    int in_page;

    WL_DEVICE static Boxes of(const AttentionParams& params, const WorkCursor& item, int first) {
      const int row = (first + lane_id()) * Config::kBoxRows;
      if (row >= item.work.kv_len || !params.pages) return {first, 0, item.work.kv_start + row};
      const int number = params.page_size.divide(row);
      return {first, params.pages[int64_t(item.work.kv_start) + number], params.page_size.remainder(row, number)};
    }
  };

  // Those of a tile that have keys of the request.
  WL_DEVICE void copy(const WorkCursor& item, int tile, const Boxes& boxes) {
    constexpr int kOfBox = KeyRows::kCopies + ValueRows::kCopies, kCopies = Config::kBoxes * kOfBox;
    const int left = item.work.kv_len - tile * Config::kTileKeys, existing = min(ceil_div(left, Config::kBoxRows), Config::kBoxes);
    uint64_t* full = &ring.full[place.stage()];
    ring.wait_free(place);
    if (lane_id() == 0) mbarrier_expect_bytes(full, existing * (KeyRows::kBytes + ValueRows::kBytes));
    __syncwarp();
#pragma unroll
    for (int first = 0; first < kCopies; first += kWarpSize) {
      const int box = (first + lane_id()) / kOfBox, number = (first + lane_id()) % kOfBox, lane = tile * Config::kBoxes + box;
      const int page = __shfl_sync(kFullMask, boxes.page, lane), in_page = __shfl_sync(kFullMask, boxes.in_page, lane);
      if (box >= existing) continue;
      if (number < KeyRows::kCopies) {
        KeyRows::copy(tiles.key_operands(place.stage()), box, number, keys, full, in_page, item.head, page);
      } else {
        ValueRows::copy(tiles.values(place.stage()), box, number - KeyRows::kCopies, values, full, in_page, item.head, page);
      }
    }
    __syncwarp();
  }
};

// A warp that computes.
template <class Config>
struct DecodeGroup {
  using Storage = DecodeStorage<Config>;
  using KeyValues = DecodeKeyValues<Config>;
  using Tile = QueryTile<Config, KeyValues>;
  using Writer = ResultWriter<Config>;
  static constexpr int kThreads = Config::kWarps * kWarpSize;

  const AttentionParams& params;
  Storage& storage;
  KeyValues tiles;
  RingPlace<Config::kStages> place;

  WL_DEVICE void work(WorkCursor& item) {
#pragma unroll 1
    for (; !item.done(); advance<Config::kCalls>(item, params)) {
      if (!item.takes_part()) continue;
      if (item.keys.count == 0) {
        Writer{params, item}.write_nothing(threadIdx.x, kThreads);
      } else {
        work_on(item);
      }
    }
  }

 private:
  WL_DEVICE void work_on(const WorkCursor& item) {
    const int first_row = warp_id() * Config::kKeys, end_row = first_row + Config::kKeys;
    Tile tile(params, item);
    ItemEnds& ends = storage.ends[warp_id()];
    if (lane_id() == 0) ends = {SeenKeys::of<Config>(params, item), item.end()};
    __syncwarp();
#pragma unroll 1
    for (int at = item.begin(); at < ends.end; ++at, place.next()) {
      storage.ring.wait_full(place, false);
      const int existing = item.work.kv_len - at * Config::kTileKeys;
      if (existing < end_row) tiles.clear_values(place.stage(), max(existing, first_row), end_row);
      tile.template visit<Config::kKeys>(tiles, place.stage(), first_row, at * Config::kTileKeys + first_row, ends.seen.hides_some(at));
      storage.ring.release(place);
    }
    finish(tile, item);
  }

  WL_DEVICE void finish(Tile& tile, const WorkCursor& item) {
    const Writer writer{params, item};
    const int group = int(blockIdx.x) / params.lanes;
    const ItemShares shares = ItemShares::of(group, storage.chunk, item);
    const int slot = writer.slot_of(group, shares);
    SharedRowsResult<Config, Tile, typename Storage::Team>{storage.rows, writer, slot}.write(tile);
    if (slot >= 0) writer.merge_if_last(shares, kDecodeBarrier, kThreads);
  }
};

#endif

template <class Base>
__global__ void __launch_bounds__((Base::kWarps + 1) * kWarpSize, Base::kBlocksPerSm)
    attention_decode_kernel(const __grid_constant__ AttentionParams params, const __grid_constant__ TensorMap key_map,
                            const __grid_constant__ TensorMap value_map) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Config = DecodeConfig<Base>;
  extern __shared__ __align__(128) uint8_t shared[];
  const DecodeKeyValues<Config> tiles{shared + (-shared_address(shared) & 1023)};  // where the exchange of pieces begins anew
  __shared__ DecodeStorage<Config> storage;
  const WorkStart& start = params.starts[blockIdx.x];
  WorkCursor& item = storage.items[warp_id()];
  copy_cursor(item, start.cursor);
  if (threadIdx.x == 0) {
    tma_prefetch(&key_map), tma_prefetch(&value_map);
    storage.chunk = start.chunk;
    storage.ring.open(1, Config::kWarps);
    fence_barrier_init();
  }
  __syncthreads();
  if (warp_id() == Config::kWarps) {
    DecodeCopies<Config>{params, &key_map, &value_map, storage.ring, tiles, {}}.work(item);
  } else {
    clear_padding_rows<Config>(params, threadIdx.x, Config::kWarps * kWarpSize);
    DecodeGroup<Config>{params, storage, tiles, {}}.work(item);
  }
#endif
}

}  // namespace warploom::attention
