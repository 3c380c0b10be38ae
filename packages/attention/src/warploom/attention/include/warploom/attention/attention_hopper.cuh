// Attention of long queries on Hopper: tiles of 128 query rows, products by warpgroups (wgmma).
//
// Persistent blocks walk through their shares of the work as those of attention.cuh do. A block has two warpgroups that compute, 64
// rows each, and one that copies queries, keys and values. Products run one tile ahead of the softmax, from one item into the next:
// the product of a tile's keys is under way while the weights of the tile before meet their values, and the two warpgroups take
// turns, so that one makes weights while the other has the tensor cores (Shah et al., FlashAttention-3, 2024).
#pragma once

#include "warploom/attention/hopper_copies.cuh"
#include "warploom/attention/hopper_result.cuh"
#include "warploom/attention/softmax_rows.cuh"
#include "warploom/wgmma.cuh"

namespace warploom::attention {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <class Base>
struct HopperConfig : Base {
  static constexpr bool kCalls = false;
  static constexpr bool kHasWide = true;
  static constexpr int kTileKeys = 128;
  static constexpr int kMostRows = kComputingGroups * kGroupRows;
};

// 64 rows of queries, of which each of a warpgroup's warps has 16.
template <class Config>
struct GroupTile : SoftmaxRows<Config> {
  static constexpr bool kInterleaved = false;
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

// What a lane's weights of a row may add up to in a tile whose largest was not searched for: they are no problem for float16.
constexpr float kMostAdded = 4096.0f;

// Where a warpgroup is in an item.
struct ItemTiles {
  SeenKeys seen;
  int at;
  int end;
  bool is_shared;  // both warpgroups have rows of it

  template <class Config>
  WL_DEVICE static ItemTiles of(const AttentionParams& params, const WorkCursor& item) {
    SeenKeys seen = SeenKeys::of<Config>(params, item);
    seen.first = max(seen.first, item.begin());
    return {seen, item.begin(), item.end(), rows_of(params, item) > kGroupRows};
  }

  WL_DEVICE bool hides_some() const { return seen.hides_some(at); }
  // Not every row has a largest yet, as it has after the first tile that all of them see.
  WL_DEVICE bool is_early() const { return at <= seen.first; }
};

// A warpgroup that computes.
template <class Config>
struct ComputingGroup {
  using T = typename Config::Query;
  using Storage = HopperStorage<Config>;
  using Writer = ResultWriter<Config>;
  using Tile = GroupTile<Config>;
  static constexpr bool kByThreads = !Storage::kHasBoxes;
  static constexpr int kKeyBlocks = Config::kTileKeys / 8;
  using Logits = float[kKeyBlocks][4];
  using Weights = uint32_t[kKeyBlocks / 2][4];

  const AttentionParams& params;
  Storage& storage;
  uint8_t* memory;
  bool is_leaving;  // of the item before, outputs from where queries were, by this warp's TMA
  RingPlace<Storage::kItems> item_place;  // that come next
  RingPlace<Storage::kStages> keys;  // that come next; values are there, or one place before

  WL_DEVICE void work() {
    if (Warpgroup::number() == 1) give_turn();
#pragma unroll 1
    while (true) {
      storage.of_items.wait_full(item_place, false);
      const WorkCursor& item = storage.items[item_place.stage()];
      if (item.done()) return settle();
      if (item.keys.count == 0) {
        settle();
        Writer{params, item}.write_nothing(threadIdx.x, kComputingGroups * kGroupThreads);
      } else if (rows_of(params, item) > Warpgroup::number() * kGroupRows) {
        work_on_item(item);
      } else {
        settle();
        pass_by(item);
      }
      if (!is_leaving) storage.of_items.release(item_place);
      if constexpr (Storage::kItems == 1) settle();
      item_place.next();
    }
  }

 private:
  // Releases the item before, if its outputs were leaving.
  WL_DEVICE void settle() {
    if (!is_leaving) return;
    tma_store_wait_read<0>();
    storage.of_items.release(item_place.before());
    is_leaving = false;
  }

  // Tiles of an item of which the other warpgroup has all rows.
  WL_DEVICE void pass_by(const WorkCursor& item) {
#pragma unroll 1
    for (int tile = item.begin(), end = item.end(); tile < end; ++tile) {
      storage.of_keys.wait_full(keys, false);
      storage.of_keys.release(keys);
      storage.of_values.wait_full(keys, false);
      storage.of_values.release(keys);
      keys.next();
    }
  }

  // Operands of the next products.
  WL_DEVICE uint32_t next_queries() const {
    return wgmma_uniform(wgmma_rows(Storage::queries(memory, item_place.stage(), Warpgroup::number())));
  }
  WL_DEVICE uint32_t next_keys() const { return wgmma_uniform(wgmma_rows(Storage::keys(memory, keys.stage()))); }
  WL_DEVICE uint32_t next_values() const {
    return wgmma_uniform(wgmma_columns(Storage::values(memory, keys.before().stage()), Storage::Values::kColumnBytes));
  }

  // Warpgroups begin their products in turns.
  WL_DEVICE void take_turn() { sync_threads_of(kTurnBarrier + Warpgroup::number(), kComputingGroups * kGroupThreads); }
  WL_DEVICE void give_turn() { arrive_for_threads_of(kTurnBarrier + 1 - Warpgroup::number(), kComputingGroups * kGroupThreads); }

  WL_DEVICE void work_on_item(const WorkCursor& item) {
    Tile tile(params);
    tile.start(item);
    ItemTiles tiles = ItemTiles::template of<Config>(params, item);
    Weights weights;
    {
      Logits logits;
      float factor[2];
      const uint32_t q = next_queries(), k = next_keys();
      storage.of_keys.wait_full(keys, kByThreads);
      multiply_keys(logits, q, k);
      wgmma_wait<0>();
      wgmma_done(logits);
      make_weights(tile, tiles, logits, factor);
      storage.of_keys.release(keys);
      keys.next();
      tile.pack(logits, weights);
      settle();
    }
#pragma unroll 1
    for (++tiles.at; tiles.at < tiles.end; ++tiles.at) work_on_tile(tile, tiles, weights);
    const uint32_t v = next_values();
    storage.of_values.wait_full(keys.before(), kByThreads);
    multiply_values(tile, weights, v);
    wgmma_wait<0>();
    wgmma_done(tile.out), wgmma_done(weights);
    storage.of_values.release(keys.before());
    finish(tile, tiles);
  }

  // The values of the tile before, the keys of this one.
  WL_DEVICE void work_on_tile(Tile& tile, const ItemTiles& tiles, Weights& weights) {
    Logits logits;
    float factor[2];
    const uint32_t q = next_queries(), k = next_keys(), v = next_values();
    storage.of_keys.wait_full(keys, kByThreads);
    if (tiles.is_shared) take_turn();
    multiply_keys(logits, q, k);
    storage.of_values.wait_full(keys.before(), kByThreads);
    multiply_values(tile, weights, v);
    if (tiles.is_shared) give_turn();
    wgmma_wait<1>();
    wgmma_done(logits);
    make_weights(tile, tiles, logits, factor);
    storage.of_keys.release(keys);
    wgmma_done(logits);
    wgmma_hold(tile.sum[0] + tile.sum[1] < 0.0f);
    wgmma_wait<0>();
    wgmma_done(tile.out), wgmma_done(weights);
    storage.of_values.release(keys.before());
    keys.next();
    tile.rescale(tile.out, factor);
    tile.pack(logits, weights);
  }

  // logits = queries times keys. Begins; wgmma_wait() ends it.
  WL_DEVICE static void multiply_keys(Logits& logits, uint32_t q, uint32_t k) {
    using Keys = typename Storage::Keys;
    using Queries = typename Storage::Queries;
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < Config::kHeadDim / 16; ++step) {
      Wgmma<T, kKeyBlocks>::run(logits, wgmma_onwards(q, Queries::step(step)), wgmma_onwards(k, Keys::step(step)), step > 0);
    }
    wgmma_commit();
  }

  // out += weights times values.
  WL_DEVICE static void multiply_values(Tile& tile, const Weights& weights, uint32_t v) {
    using Values = typename Storage::Values;
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < Config::kTileKeys / 16; ++step) {
      Wgmma<T, 2 * Tile::kColumns>::add(tile.out, weights[step], wgmma_onwards(v, step * 16 * Values::kPitch));
    }
    wgmma_commit();
  }

  // What is largest in a row seldom is much more than in the tiles before, so weights are made relative to that: only if they are
  // too large, logits are computed anew and searched. The keys are still there.
  WL_DEVICE void make_weights(Tile& tile, const ItemTiles& tiles, Logits& logits, float (&factor)[2]) const {
    const bool hides_some = tiles.hides_some();
    bool searches = Config::Variant::kHasMask || hides_some || tiles.is_early();
    factor[0] = factor[1] = 1.0f;
    float added[2];
    while (true) {
      tile.prepare(tiles.at * Config::kTileKeys, hides_some, logits);
      if (searches) tile.raise_largest(logits, factor);
      tile.exponentiate(logits, added);
      if (searches || !__any_sync(kFullMask, fmaxf(added[0], added[1]) > kMostAdded)) break;
      multiply_keys_again(logits);
      searches = true;
    }
    tile.add(added);
  }

  // logits = queries times keys, by each warp for itself.
  WL_DEVICE void multiply_keys_again(Logits& logits) const {
    using Queries = typename Storage::Queries;
    using Keys = typename Storage::Keys;
    // Of the four matrices of 8 rows that a load brings, a lane has a row of matrix lane / 8.
    const uint32_t q = shared_address(Storage::queries(memory, item_place.stage(), Warpgroup::number())) +
                       Queries::offset(Warpgroup::warp() * kWarpRows + lane_id() % 16, lane_id() / 16);
    const uint32_t k = shared_address(Storage::keys(memory, keys.stage())) +
                       Keys::offset(lane_id() % 8 + lane_id() / 16 * 8, lane_id() / 8 % 2);
#pragma unroll
    for (auto& block : logits) {
#pragma unroll
      for (float& each : block) each = 0.0f;
    }
#pragma unroll 1
    for (int step = 0; step < Config::kHeadDim / 16; ++step) {
      uint32_t queries[4], of_keys[4];
      load_matrices(queries, Queries::onwards(q, 2 * step));
#pragma unroll
      for (int block = 0; block < kKeyBlocks; block += 2) {
        load_matrices(of_keys, Keys::onwards(k, 2 * step) + block * 8 * Keys::kPitch);
        multiply_add<T>(logits[block], queries, of_keys[0], of_keys[1]);
        multiply_add<T>(logits[block + 1], queries, of_keys[2], of_keys[3]);
      }
    }
  }

  WL_DEVICE void finish(Tile& tile, const ItemTiles& tiles) {
    const Writer writer{params, *tile.item};
    const ItemShares shares = ItemShares::of(storage.group, storage.chunk, *tile.item);
    const int slot = writer.slot_of(storage.group, shares);
    uint8_t* queries = Storage::queries(memory, item_place.stage(), Warpgroup::number());
    const bool has_boxes = storage.has_row_boxes && rows_of(params, *tile.item) >= (Warpgroup::number() + 1) * kGroupRows;
    is_leaving = HopperResult<Config, Tile>{writer, slot, queries, has_boxes ? storage.output_map : nullptr}.write(tile);
    if (slot < 0) return;
    // A barrier for each number of threads: the other warpgroup may be at the end of the next item already.
    const int threads = (tiles.is_shared ? kComputingGroups : 1) * kGroupThreads;
    const int barrier = tiles.is_shared ? kItemBarrier : kGroupBarrier + Warpgroup::number();
    sync_threads_of(barrier, threads);
    const bool is_last = any_of_threads(barrier, threads, threadIdx.x == 0 && arrive_at_item(params, shares));
    if (is_last) writer.merge(shares, threadIdx.x, threads);
  }
};

#endif

template <class Base>
__global__ void __launch_bounds__(384, 1) attention_hopper_kernel(
    const __grid_constant__ AttentionParams params, const __grid_constant__ TensorMap query_map,
    const __grid_constant__ TensorMap key_map, const __grid_constant__ TensorMap value_map,
    const __grid_constant__ TensorMap output_map) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Config = HopperConfig<Base>;
  extern __shared__ __align__(128) uint8_t shared[];
  uint8_t* memory = shared + (-shared_address(shared) & 1023);  // where the exchange of pieces begins anew
  __shared__ HopperStorage<Config> storage;
  const WorkStart& start = params.starts[blockIdx.x];
  storage.open(params, start, &output_map);
  WorkCursor& next = storage.copies[Warpgroup::warp()].cursor;  // of each warp that copies
  if (Warpgroup::number() == kComputingGroups) copy_cursor(next, start.cursor);
  clear_padding_rows<Config>(params);
  __syncthreads();
  if (Warpgroup::number() == kComputingGroups) {
    give_registers<56>();
    CopyingGroup<Config>{params, {&query_map, &key_map, &value_map}, storage, memory, next, {}, {}}.work();
  } else {
    take_registers<224>();
    ComputingGroup<Config>{params, storage, memory, false, {}, {}}.work();
  }
#endif
}

}  // namespace warploom::attention
