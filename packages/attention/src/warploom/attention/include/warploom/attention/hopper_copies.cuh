// The warpgroup of attention_hopper.cuh that copies.
#pragma once

#include "warploom/attention/hopper_storage.cuh"
#include "warploom/attention/value_turn.cuh"

namespace warploom::attention {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// The boxes of Config::kBoxRows rows that a tile of keys consists of, each of which lies in one page. Warps share them, and a lane
// has one: where it lies.
template <class Config>
struct KeyValueBoxes {
  static constexpr int kRows = Config::kBoxRows;
  static constexpr int kBoxes = Config::kTileKeys / kRows;
  static constexpr int kOfWarp = ceil_div(kBoxes, kGroupWarps);

  int page;
  int in_page;

  WL_DEVICE static int box() { return Warpgroup::warp() * kOfWarp + lane_id(); }
  WL_DEVICE static bool has_box() { return lane_id() < kOfWarp && box() < kBoxes; }
  WL_DEVICE static int boxes_of_warp() { return Warpgroup::warp() * kOfWarp < kBoxes ? kOfWarp : 0; }

  // Of a tile.
  WL_DEVICE static KeyValueBoxes of(const AttentionParams& params, const WorkCursor& item, int tile) {
    const int row = tile * Config::kTileKeys + box() * kRows;
    if (!has_box() || row >= item.work.kv_len || !params.pages) return {0, item.work.kv_start + row};
    const int number = params.page_size.divide(row);
    return {params.pages[int64_t(item.work.kv_start) + number], params.page_size.remainder(row, number)};
  }

  template <class Rows>
  WL_DEVICE void copy(uint8_t* to, const TensorMap* map, int head, uint64_t* full) const {
    constexpr int kBytes = kRows * Rows::kPitch;
    if (lane_id() == 0) mbarrier_expect_bytes(full, boxes_of_warp() * Rows::kColumns * kBytes);
    __syncwarp();
    if (has_box()) {
#pragma unroll
      for (int column = 0; column < Rows::kColumns; ++column) {
        tma_load_4d(to + column * Rows::kColumnBytes + box() * kBytes, map, full, column * Rows::kColumnElements, in_page, head, page);
      }
    }
    __syncwarp();
  }
};

// Walks through the block's work, and announces each item with its queries.
template <class Config>
struct CopyingGroup {
  using Storage = HopperStorage<Config>;
  using T = typename Config::Query;

  const AttentionParams& params;
  HopperMaps maps;
  Storage& storage;
  uint8_t* memory;
  WorkCursor& item;
  RingPlace<Storage::kItems> item_place;
  RingPlace<Storage::kStages> key_place, value_place;
  RingPlace<Storage::kUnturned> copied_place, turned_place;

  WL_DEVICE void work() {
#pragma unroll 1
    for (; !item.done(); advance<Config::kCalls>(item, params)) {
      if (!item.takes_part()) continue;
      const bool has_tiles = item.begin() < item.end();
      announce(has_tiles);
      if (!has_tiles) continue;
      if constexpr (Storage::kIsTurned) {
        copy_and_turn();
      } else if constexpr (Storage::kHasBoxes) {
        copy_boxes();
      } else {
        copy_rows();
      }
    }
    announce(false);
    cp_async_commit();
    cp_async_wait<0>();
  }

 private:
  using Keys = typename Storage::Keys;
  using Values = typename Storage::Values;

  WL_DEVICE uint8_t* keys() const { return Storage::keys(memory, key_place.stage()); }
  WL_DEVICE uint8_t* values() const { return Storage::values(memory, value_place.stage()); }

  WL_DEVICE void announce(bool has_queries) {
    uint64_t* full = &storage.of_items.full[item_place.stage()];
    storage.of_items.wait_free(item_place);
    if (Warpgroup::warp() == 0) copy_cursor(storage.items[item_place.stage()], item);
    if (has_queries && storage.has_row_boxes) {
      copy_query_box(full);
    } else {
      if (has_queries) copy_queries();
      mbarrier_arrive(full);
    }
    item_place.next();
  }

  // By TMA, columns of a computing warpgroup's rows by each warp.
  WL_DEVICE void copy_query_box(uint64_t* full) const {
    using Queries = typename Storage::Queries;
    constexpr int kWarps = kGroupWarps / kComputingGroups;
    const int group = Warpgroup::warp() / kWarps, first = Warpgroup::warp() % kWarps;
    if (lane_id() != 0) return mbarrier_arrive(full);
    mbarrier_expect_bytes(full, (Queries::kColumns - first + kWarps - 1) / kWarps * Queries::kColumnBytes);
    const int query = TileRow::of(params, item, group * kGroupRows).query;
    uint8_t* to = Storage::queries(memory, item_place.stage(), group);
#pragma unroll 1
    for (int column = first; column < Queries::kColumns; column += kWarps) {
      const int first = column * Queries::kColumnElements;
      tma_load_4d(to + column * Queries::kColumnBytes, maps.queries, full, first, 0, item.head, item.work.qo_start + query);
    }
  }

  // By cp.async: groups may have any size.
  WL_DEVICE void copy_queries() const {
    using Queries = typename Storage::Queries;
    uint8_t* to = Storage::queries(memory, item_place.stage(), 0);
    const int existing = rows_of(params, item);
#pragma unroll 1
    for (int i = Warpgroup::thread(); i < kComputingGroups * kGroupRows * Queries::kPieces; i += kGroupThreads) {
      const int row = i / Queries::kPieces, piece = i % Queries::kPieces;
      const TileRow of_tile = TileRow::of(params, item, row);
      const int64_t at = item.work.qo_start + of_tile.query;
      const T* head = static_cast<const T*>(params.q) + at * params.q_stride[0] + of_tile.head * params.q_stride[1];
      cp_async_16_or_zero(to + row / kGroupRows * Storage::kGroupBytes + Queries::offset(row % kGroupRows, piece),
                          head + piece * (16 / int(sizeof(T))), row < existing && at < params.q_rows);
    }
    wait_for_copies();
  }

  // Of the warp, by cp.async; the tensor cores see them then.
  WL_DEVICE static void wait_for_copies() {
    cp_async_commit();
    cp_async_wait<0>();
    fence_async_proxy();
    __syncwarp();
  }

  // By cp.async: pages may have any size.
  WL_DEVICE void copy_rows() {
    auto& state = storage.copies[Warpgroup::warp()];
    KeyValueRows<Config> rows(params, state, Warpgroup::warp());
    rows.enter_item();
#pragma unroll 1
    do {
      rows.find();
      storage.of_keys.wait_free(key_place);
      rows.template copy<Keys>(keys(), state.keys);
      mbarrier_arrive_after_copies(&storage.of_keys.full[key_place.stage()]);
      storage.of_values.wait_free(value_place);
      rows.template copy<Values>(values(), state.values);
      mbarrier_arrive_after_copies(&storage.of_values.full[value_place.stage()]);
      key_place.next(), value_place.next();
    } while (rows.next_tile());
  }

  // By TMA, in the order in which products need them: keys are one tile ahead of values, but for few rows.
  WL_DEVICE void copy_boxes() {
    auto& state = storage.copies[Warpgroup::warp()];
    const int begin = item.begin(), end = item.end(), ahead = item.work.tile_rows == kFewRows ? 0 : 1;
    using Boxes = KeyValueBoxes<Config>;
    Boxes before{}, now = Boxes::of(params, item, begin);
#pragma unroll 1
    for (int tile = begin; tile < end + ahead; ++tile) {
      if (tile < end) copy_tile<Keys>(tile, now, maps.keys, storage.of_keys, key_place, keys(), state.keys);
      if (ahead == 0) before = now;
      if (tile - ahead >= begin) {
        copy_tile<Values>(tile - ahead, before, maps.values, storage.of_values, value_place, values(), state.values);
      }
      before = now;
      now = Boxes::of(params, item, tile + 1);
    }
  }

  // The same with values that are turned before products need them: once as many are on their way as there is room for.
  WL_DEVICE void copy_and_turn() {
    auto& state = storage.copies[Warpgroup::warp()];
    constexpr int kAhead = Storage::kUnturned - 1;
    const int begin = item.begin(), end = item.end();
    using Boxes = KeyValueBoxes<Config>;
    Boxes now = Boxes::of(params, item, begin);
#pragma unroll 1
    for (int tile = begin; tile < end + kAhead; ++tile) {
      if (tile < end) {
        copy_tile<Keys>(tile, now, maps.keys, storage.of_keys, key_place, keys(), state.keys);
        uint8_t* to = Storage::unturned(memory, copied_place.stage());
        copy_tile<typename Storage::ValuesInMemory>(tile, now, maps.values, storage.of_unturned, copied_place, to, state.values);
        now = Boxes::of(params, item, tile + 1);
      }
      if (tile - kAhead >= begin) turn_values();
    }
  }

  // Of the tile that comes next.
  WL_DEVICE void turn_values() {
    storage.of_unturned.wait_full(turned_place, false);
    storage.of_values.wait_free(value_place);
    ValueTurn<Storage>::run(Storage::unturned(memory, turned_place.stage()), values());
    fence_async_proxy();
    storage.of_unturned.release(turned_place);
    if (lane_id() == 0) mbarrier_arrive(&storage.of_values.full[value_place.stage()]);
    turned_place.next(), value_place.next();
  }

  // `found`: rows of the tile, once they are looked up, for one that has more rows than there are keys: these have to be 0.
  template <class Rows, class AnyRing, class Place, int kRows>
  WL_DEVICE void copy_tile(int tile, const KeyValueBoxes<Config>& boxes, const TensorMap* map, AnyRing& ring, Place& place,
                           uint8_t* to, const uint8_t* const (&found)[kRows]) {
    uint64_t* full = &ring.full[place.stage()];
    ring.wait_free(place);
    if ((tile + 1) * Config::kTileKeys <= item.work.kv_len) {
      boxes.template copy<Rows>(to, map, item.head, full);
    } else {
      KeyValueRows<Config> rows(params, storage.copies[Warpgroup::warp()], Warpgroup::warp());
      rows.enter_item(tile);
      rows.find();
      rows.template copy<Rows>(to, found);
      wait_for_copies();
      if (lane_id() == 0) mbarrier_arrive(full);
    }
    place.next();
  }
};

#endif

}  // namespace warploom::attention
