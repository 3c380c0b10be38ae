// Attention of long queries on Hopper, with products made by CuTe, the layouts and instructions of CUTLASS.
//
// Blocks, items, copies and results are those of attention_hopper.cuh. A warpgroup that computes does one thing after the other
// with each tile, which makes this the kernel to read first: while one makes weights, the other has the tensor cores.
#pragma once

#include <cute/tensor.hpp>

#include "warploom/attention/hopper_group.cuh"

namespace warploom::attention {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// The two products of a tile, of a warpgroup's 64 rows.
template <class Config>
struct CuteProducts {
  using T = conditional_t<is_same_v<typename Config::Query, __half>, cute::half_t, cute::bfloat16_t>;
  using Rows = cute::Int<kGroupRows>;
  using Keys = cute::Int<Config::kTileKeys>;
  using HeadDim = cute::Int<Config::kHeadDim>;
  using ValueDim = cute::Int<Config::kValueDim>;
  static constexpr auto kAlongRows = cute::GMMA::Major::K;
  static constexpr auto kAcrossRows = cute::GMMA::Major::MN;

  // Shared memory as SwizzledRows has it: 64 columns of all rows, then the next 64. Values are seen with their columns first.
  using RowsAtom = cute::GMMA::Layout_K_SW128_Atom<T>;
  using QueryLayout = decltype(cute::tile_to_shape(RowsAtom{}, cute::Shape<Rows, HeadDim>{}));
  using KeyLayout = decltype(cute::tile_to_shape(RowsAtom{}, cute::Shape<Keys, HeadDim>{}));
  using ValueLayout = decltype(cute::tile_to_shape(
      cute::GMMA::Layout_MN_SW128_Atom<T>{}, cute::Shape<ValueDim, Keys>{}, cute::Step<cute::_2, cute::_1>{}));

  using KeyProduct = decltype(cute::make_tiled_mma(
      cute::GMMA::ss_op_selector<T, T, float, cute::Shape<Rows, Keys, HeadDim>, kAlongRows, kAlongRows>()));
  using ValueProduct = decltype(cute::make_tiled_mma(
      cute::GMMA::rs_op_selector<T, T, float, cute::Shape<Rows, ValueDim, Keys>, kAlongRows, kAcrossRows>()));

  // sums = queries times keys.
  template <int kBlocks>
  WL_DEVICE static void multiply_keys(uint8_t* queries, uint8_t* keys, float (&sums)[kBlocks][4]) {
    KeyProduct product;
    const auto group = product.get_slice(0);  // what lies in shared memory is the same for all threads
    const auto a = group.partition_fragment_A(shared_tensor<QueryLayout>(queries));
    const auto b = group.partition_fragment_B(shared_tensor<KeyLayout>(keys));
    auto c = of_lane<float>(sums, cute::partition_shape_C(product, cute::Shape<Rows, Keys>{}));
    product.accumulate_ = cute::GMMA::ScaleOut::Zero;
    multiply(product, a, b, c);
  }

  // sums += weights times values.
  template <int kSteps, int kBlocks>
  WL_DEVICE static void multiply_values(uint32_t (&weights)[kSteps][4], uint8_t* values, float (&sums)[kBlocks][4]) {
    ValueProduct product;
    const auto group = product.get_slice(0);
    auto a = of_lane<T>(weights, cute::partition_shape_A(product, cute::Shape<Rows, Keys>{}));
    const auto b = group.partition_fragment_B(shared_tensor<ValueLayout>(values));
    auto c = of_lane<float>(sums, cute::partition_shape_C(product, cute::Shape<Rows, ValueDim>{}));
    cute::warpgroup_fence_operand(a), cute::warpgroup_fence_operand(c);  // all writes to them come first
    multiply(product, a, b, c);
  }

 private:
  template <class Layout>
  WL_DEVICE static auto shared_tensor(uint8_t* memory) {
    return cute::make_tensor(cute::make_smem_ptr(reinterpret_cast<T*>(memory)), Layout{});
  }

  // Values of a lane lie in our arrays in the order in which CuTe numbers them.
  template <class Value, class Array, class Shape>
  WL_DEVICE static auto of_lane(Array& values, Shape shape) {
    static_assert(sizeof(Array) == sizeof(Value) * decltype(cute::size(shape))::value, "as many as CuTe has");
    return cute::make_tensor(cute::make_rmem_ptr(reinterpret_cast<Value*>(&values)), shape);
  }

  template <class Product, class A, class B, class C>
  WL_DEVICE static void multiply(Product& product, const A& a, const B& b, C& c) {
    cute::warpgroup_arrive();
#pragma unroll
    for (int step = 0; step < cute::size<2>(a); ++step) {
      cute::gemm(product, a(cute::_, cute::_, step), b(cute::_, cute::_, step), c);
      product.accumulate_ = cute::GMMA::ScaleOut::One;
    }
    cute::warpgroup_commit_batch();
    cute::warpgroup_wait<0>();
    cute::warpgroup_fence_operand(c);
  }
};

// A warpgroup that computes.
template <class Config>
struct CutlassGroup : HopperGroup<Config, CutlassGroup<Config>> {
  using Base = HopperGroup<Config, CutlassGroup<Config>>;
  using typename Base::Logits, typename Base::Storage, typename Base::Tile, typename Base::Weights;
  using Base::item_place, Base::kByThreads, Base::keys, Base::memory, Base::storage;
  using Products = CuteProducts<Config>;

  WL_DEVICE void compute(Tile& tile, ItemTiles& tiles) {
    Base::settle();
    uint8_t* queries = uniform(Storage::queries(memory, item_place.stage(), tiles.group()));
#pragma unroll 1
    for (; tiles.at < tiles.end; ++tiles.at, keys.next()) {
      if (!tiles.is_mine()) {
        Base::pass_tile();
        continue;
      }
      Logits logits;
      Weights weights;
      float factor[2];

      storage.of_keys.wait_full(keys, kByThreads);
      Products::multiply_keys(queries, uniform(Storage::keys(memory, keys.stage())), logits);
      storage.of_keys.release(keys);

      tile.prepare(tiles.at * Config::kTileKeys, tiles.hides_some(), logits);
      tile.weigh(logits, factor);
      tile.rescale(tile.out, factor);
      WeightOperands<typename Config::Query>::pack(logits, weights);

      storage.of_values.wait_full(keys, kByThreads);
      Products::multiply_values(weights, uniform(Storage::values(memory, keys.stage())), tile.out);
      storage.of_values.release(keys);
    }
  }

 private:
  // An address that all lanes know to be the same: what is computed from it takes no registers of theirs.
  WL_DEVICE uint8_t* uniform(uint8_t* address) const { return memory + __shfl_sync(kFullMask, int(address - memory), 0); }
};

#endif

template <class Base>
__global__ void __launch_bounds__(384, 1) attention_cutlass_kernel(
    const __grid_constant__ AttentionParams params, const __grid_constant__ TensorMap query_map,
    const __grid_constant__ TensorMap key_map, const __grid_constant__ TensorMap value_map,
    const __grid_constant__ TensorMap output_map) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Config = HopperConfig<Base>;
  work_as_hopper_block<Config, CutlassGroup<Config>>(params, {&query_map, &key_map, &value_map, &output_map});
#endif
}

}  // namespace warploom::attention
