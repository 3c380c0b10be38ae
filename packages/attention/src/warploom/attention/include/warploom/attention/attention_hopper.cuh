// Attention of long queries on Hopper: tiles of 128 query rows, products by warpgroups (wgmma).
//
// Persistent blocks walk through their shares of the work as those of attention.cuh do. A block has two warpgroups that compute, 64
// rows each, and one that copies queries, keys and values. Products run one tile ahead of the softmax: that of a tile's keys is
// under way while the weights of the tile before meet their values, and the two warpgroups take turns, so that one makes weights
// while the other has the tensor cores (Shah et al., FlashAttention-3, 2024).
#pragma once

#include "warploom/attention/hopper_group.cuh"
#include "warploom/wgmma.cuh"

namespace warploom::attention {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// A warpgroup that computes. Values are one tile behind keys.
template <class Config>
struct ComputingGroup : HopperGroup<Config, ComputingGroup<Config>> {
  using Base = HopperGroup<Config, ComputingGroup<Config>>;
  using typename Base::Logits, typename Base::Storage, typename Base::Tile, typename Base::Weights;
  using Base::item_place, Base::kByThreads, Base::keys, Base::kKeyBlocks, Base::memory, Base::storage;
  using T = typename Config::Query;
  using Variant = typename Config::Variant;
  // The largest is searched for in every tile: variants and large heads leave no registers for make_weights() to look twice.
  static constexpr bool kSearches = Config::kHeadDim > 128 || Variant::kHasLogits || Variant::kHasMask;
  // Products of 8 bits take so little time that one after the other would leave both making weights at once.
  static constexpr bool kTurnsAreForWeights = Storage::kIsTurned;

  WL_DEVICE void work() {
    if (Warpgroup::number() == 1) give_turn();
    Base::work();
  }

  WL_DEVICE void compute(Tile& tile, ItemTiles& tiles) {
    if (!tiles.is_shared) return compute_half(tile, tiles);
    Weights weights;
    {
      Logits logits;
      float factor[2];
      const uint32_t q = next_queries(tiles), k = next_keys();
      storage.of_keys.wait_full(keys, kByThreads);
      multiply_keys(logits, q, k);
      wgmma_wait<0>();
      wgmma_done(logits);
      make_weights(tile, tiles, logits, factor);
      storage.of_keys.release(keys);
      keys.next();
      WeightOperands<T>::pack(logits, weights);
      if constexpr (Storage::kItems > 1) Base::settle();
    }
#pragma unroll 1
    for (++tiles.at; tiles.at < tiles.end; ++tiles.at) work_on_tile(tile, tiles, weights);
    const uint32_t v = values_at(keys.before());
    storage.of_values.wait_full(keys.before(), kByThreads);
    multiply_values(tile, weights, v);
    wgmma_wait<0>();
    wgmma_done(tile.out), wgmma_done(weights);
    storage.of_values.release(keys.before());
  }

 private:
  // Operands of the next products.
  WL_DEVICE uint32_t next_queries(const ItemTiles& tiles) const {
    return wgmma_uniform(wgmma_rows(Storage::queries(memory, item_place.stage(), tiles.group())));
  }
  WL_DEVICE uint32_t next_keys() const { return wgmma_uniform(wgmma_rows(Storage::keys(memory, keys.stage()))); }
  WL_DEVICE uint32_t values_at(const RingPlace<Storage::kStages>& place) const {
    const uint8_t* values = Storage::values(memory, place.stage());
    return wgmma_uniform(Storage::kIsTurned ? wgmma_rows(values) : wgmma_columns(values, Storage::Values::kColumnBytes));
  }

  // Warpgroups begin their products in turns, or make weights in turns.
  WL_DEVICE void take_turn() { sync_threads_of(kTurnBarrier + Warpgroup::number(), kComputingGroups * kGroupThreads); }
  WL_DEVICE void give_turn() { arrive_for_threads_of(kTurnBarrier + 1 - Warpgroup::number(), kComputingGroups * kGroupThreads); }

  // One thing after the other with every other tile: few rows wait for keys, not for products.
  WL_DEVICE void compute_half(Tile& tile, ItemTiles& tiles) {
    if constexpr (Storage::kItems > 1) Base::settle();
#pragma unroll 1
    for (; tiles.at < tiles.end; ++tiles.at, keys.next()) {
      if (!tiles.is_mine()) {
        Base::pass_tile();
        continue;
      }
      Logits logits;
      Weights weights;
      float factor[2];
      const uint32_t q = next_queries(tiles), k = next_keys(), v = values_at(keys);
      storage.of_keys.wait_full(keys, kByThreads);
      multiply_keys(logits, q, k);
      wgmma_wait<0>();
      wgmma_done(logits);
      make_weights(tile, tiles, logits, factor);
      storage.of_keys.release(keys);
      tile.rescale(tile.out, factor);
      WeightOperands<T>::pack(logits, weights);
      storage.of_values.wait_full(keys, kByThreads);
      multiply_values(tile, weights, v);
      wgmma_wait<0>();
      wgmma_done(tile.out), wgmma_done(weights);
      storage.of_values.release(keys);
    }
  }

  // The values of the tile before, the keys of this one.
  WL_DEVICE void work_on_tile(Tile& tile, const ItemTiles& tiles, Weights& weights) {
    Logits logits;
    float factor[2];
    const uint32_t q = next_queries(tiles), k = next_keys(), v = values_at(keys.before());
    storage.of_keys.wait_full(keys, kByThreads);
    if constexpr (!kTurnsAreForWeights) take_turn();
    multiply_keys(logits, q, k);
    storage.of_values.wait_full(keys.before(), kByThreads);
    multiply_values(tile, weights, v);
    if constexpr (!kTurnsAreForWeights) give_turn();
    wgmma_wait<1>();
    wgmma_done(logits);
    if constexpr (kTurnsAreForWeights) take_turn();
    make_weights(tile, tiles, logits, factor);
    if constexpr (kTurnsAreForWeights) give_turn();
    storage.of_keys.release(keys);
    wgmma_done(logits);
    wgmma_hold(tile.sum[0] + tile.sum[1] < 0.0f);
    wgmma_wait<0>();
    wgmma_done(tile.out), wgmma_done(weights);
    storage.of_values.release(keys.before());
    keys.next();
    tile.rescale(tile.out, factor);
    WeightOperands<T>::pack(logits, weights);
  }

  // logits = queries times keys. Begins; wgmma_wait() ends it.
  WL_DEVICE static void multiply_keys(Logits& logits, uint32_t q, uint32_t k) {
    using Keys = typename Storage::Keys;
    using Queries = typename Storage::Queries;
    using Product = Wgmma<T, kKeyBlocks>;
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < Config::kHeadDim / Product::kDepth; ++step) {
      Product::run(logits, wgmma_onwards(q, Queries::step(step)), wgmma_onwards(k, Keys::step(step)), step > 0);
    }
    wgmma_commit();
  }

  // out += weights times values.
  WL_DEVICE static void multiply_values(Tile& tile, const Weights& weights, uint32_t v) {
    using Values = typename Storage::Values;
    using Product = Wgmma<T, 2 * Tile::kColumns>;
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < Config::kTileKeys / Product::kDepth; ++step) {
      const int at = Storage::kIsTurned ? Values::step(step) : step * Product::kDepth * Values::kPitch;
      Product::add(tile.out, weights[step], wgmma_onwards(v, at));
    }
    wgmma_commit();
  }

  // What is largest in a row seldom is much more than in the tiles before, so weights are made relative to that: only if they are
  // too large, logits are computed anew and searched. The keys are still there.
  WL_DEVICE void make_weights(Tile& tile, const ItemTiles& tiles, Logits& logits, float (&factor)[2]) const {
    const bool hides_some = tiles.hides_some();
    bool searches = kSearches || hides_some || tiles.is_early();
    factor[0] = factor[1] = 1.0f;
    float added[2];
    while (true) {
      tile.prepare(tiles.at * Config::kTileKeys, hides_some, logits);
      if (searches) tile.raise_largest(logits, factor);
      tile.exponentiate(logits, added);
      if (searches || !__any_sync(kFullMask, fmaxf(added[0], added[1]) > WeightOperands<T>::kMostAdded)) break;
      if constexpr (!kSearches) multiply_keys_again(tiles, logits);
      searches = true;
    }
    tile.add(added);
  }

  // logits = queries times keys, by each warp for itself.
  WL_DEVICE void multiply_keys_again(const ItemTiles& tiles, Logits& logits) const {
    using Queries = typename Storage::Queries;
    using Keys = typename Storage::Keys;
    // Of the four matrices of 8 rows that a load brings, a lane has a row of matrix lane / 8.
    const uint32_t q = shared_address(Storage::queries(memory, item_place.stage(), tiles.group())) +
                       Queries::offset(Warpgroup::warp() * kWarpRows + lane_id() % 16, lane_id() / 16);
    const uint32_t k = shared_address(Storage::keys(memory, keys.stage())) +
                       Keys::offset(lane_id() % 8 + lane_id() / 16 * 8, lane_id() / 8 % 2);
#pragma unroll
    for (auto& block : logits) {
#pragma unroll
      for (float& each : block) each = 0.0f;
    }
#pragma unroll 1
    for (int step = 0; step < Config::kHeadDim / Wgmma<T, kKeyBlocks>::kDepth; ++step) {
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
};

#endif

template <class Base>
__global__ void __launch_bounds__(384, 1) attention_hopper_kernel(
    const __grid_constant__ AttentionParams params, const __grid_constant__ TensorMap query_map,
    const __grid_constant__ TensorMap key_map, const __grid_constant__ TensorMap value_map,
    const __grid_constant__ TensorMap output_map) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Config = HopperConfig<Base>;
  work_as_hopper_block<Config, ComputingGroup<Config>>(params, {&query_map, &key_map, &value_map, &output_map});
#endif
}

}  // namespace warploom::attention
