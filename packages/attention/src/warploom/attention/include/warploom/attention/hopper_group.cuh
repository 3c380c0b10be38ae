// What the kernels for Hopper have in common: blocks of three warpgroups, two of which compute, 64 rows each.
#pragma once

#include "warploom/attention/hopper_copies.cuh"
#include "warploom/attention/hopper_few_rows.cuh"
#include "warploom/attention/hopper_result.cuh"
#include "warploom/attention/softmax_rows.cuh"

namespace warploom::attention {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <class Base>
struct HopperConfig : Base {
  static constexpr bool kCalls = false;
  static constexpr int kMostAddresses = 4;  // of a copy, for which the warps that copy have registers
  static constexpr bool kHasWide = true;
  static constexpr bool kHasRope = false;
  using Rotation = NoRotation;
  static constexpr int kMostRows = kComputingGroups * kGroupRows;
};

// 64 rows of queries, of which each of a warpgroup's warps has 16.
template <class Config>
struct GroupTile : SoftmaxRows<Config> {
  static constexpr int kColumns = Config::kValueDim / 16;

  float out[2 * kColumns][4];

  WL_DEVICE explicit GroupTile(const AttentionParams& params) : SoftmaxRows<Config>(params) {}

  WL_DEVICE void start(const WorkCursor& item) {
    SoftmaxRows<Config>::start(item);
#pragma unroll
    for (auto& block : out) {
#pragma unroll
      for (float& each : block) each = 0.0f;
    }
  }
};

// Where a warpgroup is in an item.
struct ItemTiles {
  SeenKeys seen;
  int at;
  int end;
  bool is_shared;  // each warpgroup has rows of its own

  template <class Config>
  WL_DEVICE static ItemTiles of(const AttentionParams& params, const WorkCursor& item) {
    SeenKeys seen = SeenKeys::of<Config>(params, item);
    seen.first = max(seen.first, item.begin());
    return {seen, item.begin(), item.end(), rows_of(params, item) > kGroupRows};
  }

  // Of items whose rows one warpgroup could have, both have them all, and each takes every other tile.
  WL_DEVICE bool is_mine() const { return is_shared || at % kComputingGroups == Warpgroup::number(); }
  WL_DEVICE int group() const { return is_shared ? Warpgroup::number() : 0; }  // whose rows the warpgroup has

  WL_DEVICE bool hides_some() const { return seen.hides_some(at); }
  // Not every row has a largest yet, as it has after the warpgroup's first tile that all of them see.
  WL_DEVICE bool is_early() const { return at <= seen.first + (is_shared ? 0 : 1); }
};

// A warpgroup that computes, but for the products: `Group`, which is made from it, has compute(tile, tiles).
template <class Config, class Group>
struct HopperGroup {
  using Storage = HopperStorage<Config>;
  using Writer = ResultWriter<Config>;
  using Tile = GroupTile<Config>;
  static constexpr bool kByThreads = !Storage::kHasBoxes;
  static constexpr int kKeyBlocks = Config::kTileKeys / 8;
  using Logits = float[kKeyBlocks][4];
  using Weights = uint32_t[Config::kTileKeys * int(sizeof(typename Config::Kv)) / 32][4];

  const AttentionParams& params;
  Storage& storage;
  uint8_t* memory;
  RingPlace<Storage::kItems> item_place;  // that comes next
  RingPlace<Storage::kStages> keys;       // that come next; their values have the same place

  WL_DEVICE void work() {
#pragma unroll 1
    while (true) {
      storage.of_items.wait_full(item_place, false);
      const WorkCursor& item = storage.items[item_place.stage()];
      if (item.done()) return settle();
      if (item.keys.count == 0) {
        settle();
        Writer{params, item}.write_nothing(threadIdx.x, kComputingGroups * kGroupThreads);
      } else if (FewRows<Config>::kAreServed && item.work.tile_rows == kFewRows) {
        if constexpr (FewRows<Config>::kAreServed) work_on_few_rows();
      } else {
        Tile tile(params);
        tile.start(item);
        ItemTiles tiles = ItemTiles::template of<Config>(params, item);
        static_cast<Group&>(*this).compute(tile, tiles);
        if (tiles.is_shared || gather(tile)) finish(tile, tiles);
      }
      if (!is_leaving()) storage.of_items.release_by_thread(item_place);
      if constexpr (Storage::kItems == 1) settle();
      item_place.next();
    }
  }

  // Releases the item before, if its outputs were leaving.
  WL_DEVICE void settle() {
    if (!is_leaving()) return;
    tma_store_wait_read<0>();
    storage.of_items.release_by_thread(item_place.before());
    is_leaving() = false;
  }

  // The next tile is the other warpgroup's.
  WL_DEVICE void pass_tile() {
    storage.of_keys.wait_full(keys, false);
    storage.of_keys.release(keys);
    storage.of_values.wait_full(keys, false);
    storage.of_values.release(keys);
  }

 private:
  // Of the item before, outputs from where queries were, by this warp's TMA.
  WL_DEVICE bool& is_leaving() { return storage.is_leaving[threadIdx.x]; }

  WL_DEVICE void work_on_few_rows() {
    using Few = FewRows<Config>;
    // Anew, so that its addresses do not stay in registers.
    const WorkCursor& item = storage.items[__shfl_sync(kFullMask, item_place.stage(), 0)];
    settle();
    uint8_t* queries = Storage::queries(memory, item_place.stage(), 0);
    typename Few::Tile tile(params, item);
    tile.take_queries(queries);
    const typename Few::KeyValues key_values{memory};
    const int first_row = warp_id() * Few::kKeys;
    const SeenKeys seen = SeenKeys::of<Config>(params, item);
#pragma unroll 1
    for (int at = item.begin(), end = item.end(); at < end; ++at, keys.next()) {
      float logits[Few::kKeys / 8][4];
      uint32_t weights[Few::kKeys / 16][4];
      storage.of_keys.wait_full(keys, false);
      tile.multiply_keys(key_values, keys.stage(), first_row, logits);
      storage.of_keys.release(keys);
      tile.weigh_keys(at * Config::kTileKeys + first_row, seen.hides_some(at), logits, weights);
      storage.of_values.wait_full(keys, false);
      tile.multiply_values(key_values, keys.stage(), first_row, weights);
      storage.of_values.release(keys);
    }
    const Writer writer{params, item};
    const ItemShares shares = ItemShares::of(storage.group, storage.chunk, item);
    const int slot = writer.slot_of(storage.group, shares);
    Few::Team::sync();  // nobody reads queries any more
    typename Few::Result{reinterpret_cast<SharedRows<typename Few::Team>&>(*queries), writer, slot}.write(tile);
    fence_async_proxy();  // the next queries may come by TMA
    if (slot >= 0) writer.merge_if_last(shares, kItemBarrier, kComputingGroups * kGroupThreads);
  }

  // Puts together what the warpgroups have of the same rows, by way of where the queries were: whether this one has it then.
  WL_DEVICE bool gather(Tile& tile) {
    constexpr int kThreads = kComputingGroups * kGroupThreads;
    float4* places = reinterpret_cast<float4*>(Storage::queries(memory, item_place.stage(), 0)) + Warpgroup::thread();
    static_assert(sizeof(tile.out) * kGroupThreads <= Storage::kQueryBytes, "the outputs of a warpgroup");
    float4& state = storage.states[Warpgroup::thread()];
    sync_threads_of(kItemBarrier, kThreads);  // nobody reads queries any more
    if (Warpgroup::number() == 1) {
      state = {tile.largest[0], tile.largest[1], tile.sum[0], tile.sum[1]};
#pragma unroll
      for (int i = 0; i < 2 * Tile::kColumns; ++i) places[i * kGroupThreads] = reinterpret_cast<const float4&>(tile.out[i]);
    }
    sync_threads_of(kItemBarrier, kThreads);
    if (Warpgroup::number() == 0) {
      const float largest[2] = {state.x, state.y}, sum[2] = {state.z, state.w};
      float mine[2], other[2];
      tile.merge(largest, sum, mine, other);
#pragma unroll
      for (int i = 0; i < 2 * Tile::kColumns; ++i) {
        const float4 more = places[i * kGroupThreads];
        float(&out)[4] = tile.out[i];
        out[0] = out[0] * mine[0] + more.x * other[0], out[1] = out[1] * mine[0] + more.y * other[0];
        out[2] = out[2] * mine[1] + more.z * other[1], out[3] = out[3] * mine[1] + more.w * other[1];
      }
    }
    fence_async_proxy();  // the next queries may come by TMA
    return Warpgroup::number() == 0;
  }

  WL_DEVICE void finish(Tile& tile, const ItemTiles& tiles) {
    const Writer writer{params, *tile.item};
    const ItemShares shares = ItemShares::of(storage.group, storage.chunk, *tile.item);
    const int slot = writer.slot_of(storage.group, shares);
    uint8_t* queries = Storage::queries(memory, item_place.stage(), Warpgroup::number());
    const bool has_boxes = storage.has_row_boxes && rows_of(params, *tile.item) >= (Warpgroup::number() + 1) * kGroupRows;
    is_leaving() = HopperResult<Config, Tile>{writer, slot, queries, has_boxes ? storage.output_map : nullptr}.write(tile);
    if (slot < 0) return;
    // A barrier for each number of threads: the other warpgroup may be at the end of the next item already.
    const int threads = (tiles.is_shared ? kComputingGroups : 1) * kGroupThreads;
    writer.merge_if_last(shares, tiles.is_shared ? kItemBarrier : kGroupBarrier + Warpgroup::number(), threads);
  }
};

// A block: what it has to do, and who does it.
template <class Config, class Group>
WL_DEVICE void work_as_hopper_block(const AttentionParams& params, const HopperMaps& maps) {
  extern __shared__ __align__(128) uint8_t shared[];
  uint8_t* memory = shared + (-shared_address(shared) & 1023);  // where the exchange of pieces begins anew
  __shared__ HopperStorage<Config> storage;
  const WorkStart& start = params.starts[blockIdx.x];
  storage.open(params, start, maps.outputs);
  WorkCursor& next = storage.copies[Warpgroup::warp()].cursor;  // of each warp that copies
  if (Warpgroup::number() == kComputingGroups) copy_cursor(next, start.cursor);
  clear_padding_rows<Config>(params, threadIdx.x, int(blockDim.x));
  __syncthreads();
  if (Warpgroup::number() == kComputingGroups) {
    give_registers<56>();
    CopyingGroup<Config>{params, maps, storage, memory, next, {}, {}, {}}.work();
  } else {
    take_registers<224>();
    storage.is_leaving[threadIdx.x] = false;
    Group{{params, storage, memory, {}, {}}}.work();
  }
}

#endif

}  // namespace warploom::attention
