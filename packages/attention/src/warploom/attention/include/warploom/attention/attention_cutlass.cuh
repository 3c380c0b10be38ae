// Attention of long queries on Hopper, with products made by CuTe, the layouts and instructions of CUTLASS.
//
// Blocks, items, copies and results are those of attention_hopper.cuh. A warpgroup that computes does one thing after the other
// with each tile, which makes this the kernel to read first: while one makes weights, the other has the tensor cores.
#pragma once

#include <cute/tensor.hpp>

#include "warploom/attention/hopper_copies.cuh"
#include "warploom/attention/hopper_result.cuh"
#include "warploom/attention/softmax_rows.cuh"

namespace warploom::attention {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <class Base>
struct CutlassConfig : Base {
  static constexpr bool kCalls = false;
  static constexpr bool kHasWide = true;
  static constexpr int kTileKeys = 128;
  static constexpr int kMostRows = kComputingGroups * kGroupRows;
};

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

  // Shared memory as HopperRows has it: 64 columns of all rows, then the next 64. Values are seen with their columns first.
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

// 64 rows of queries, of which each of a warpgroup's warps has 16.
template <class Config>
struct CutlassTile : SoftmaxRows<Config> {
  static constexpr int kColumns = Config::kValueDim / 16;

  float out[2 * kColumns][4] = {};

  WL_DEVICE CutlassTile(const AttentionParams& params, const WorkCursor& item) : SoftmaxRows<Config>(params) {
    SoftmaxRows<Config>::start(item, int(threadIdx.x / kWarpSize) * kWarpRows);
  }
};

// A warpgroup that computes.
template <class Config>
struct CutlassGroup {
  using Storage = HopperStorage<Config>;
  using Writer = ResultWriter<Config>;
  using Tile = CutlassTile<Config>;
  using Products = CuteProducts<Config>;
  static constexpr bool kByThreads = !Storage::kHasBoxes;
  static constexpr int kKeyBlocks = Config::kTileKeys / 8;

  const AttentionParams& params;
  Storage& storage;
  uint8_t* memory;
  RingPlace<Storage::kItems> item_place;  // that come next
  RingPlace<Storage::kStages> keys, values;

  WL_DEVICE void work() {
#pragma unroll 1
    while (true) {
      storage.of_items.wait_full(item_place, false);
      const WorkCursor& item = storage.items[item_place.stage];
      if (item.done()) return;
      if (item.keys.count == 0) {
        Writer{params, item}.write_nothing(threadIdx.x, kComputingGroups * kGroupThreads);
      } else if (rows_of(params, item) > Warpgroup::number() * kGroupRows) {
        Tile tile(params, item);
        compute(tile);
        finish(tile);
      } else {
        pass_by(item);
      }
      storage.of_items.release(item_place);
      item_place.next();
    }
  }

 private:
  WL_DEVICE void compute(Tile& tile) {
    const WorkCursor& item = *tile.item;
    const SeenKeys seen = SeenKeys::of<Config>(params, item);
    uint8_t* queries = uniform(Storage::queries(memory, item_place.stage, Warpgroup::number()));
#pragma unroll 1
    for (int at = item.begin(), end = item.end(); at < end; ++at) {
      float logits[kKeyBlocks][4], factor[2];
      uint32_t weights[kKeyBlocks / 2][4];

      storage.of_keys.wait_full(keys, kByThreads);
      Products::multiply_keys(queries, uniform(Storage::keys(memory, keys.stage)), logits);
      storage.of_keys.release(keys);
      keys.next();

      tile.prepare(at * Config::kTileKeys, seen.hides_some(at), logits);
      tile.weigh(logits, factor);
      tile.rescale(tile.out, factor);
      tile.pack(logits, weights);

      storage.of_values.wait_full(values, kByThreads);
      Products::multiply_values(weights, uniform(Storage::values(memory, values.stage)), tile.out);
      storage.of_values.release(values);
      values.next();
    }
  }

  // The last of the blocks that share an item merges what they left.
  WL_DEVICE void finish(Tile& tile) {
    const Writer writer{params, *tile.item};
    const ItemShares shares = ItemShares::of(storage.group, storage.chunk, *tile.item);
    const int slot = writer.slot_of(storage.group, shares);
    HopperResult<Config, Tile>{writer, slot, Storage::queries(memory, item_place.stage, Warpgroup::number())}.write(tile);
    if (slot < 0) return;
    // A barrier for each number of threads: the other warpgroup may be at the end of the next item already.
    const bool is_shared = rows_of(params, *tile.item) > kGroupRows;
    const int threads = (is_shared ? kComputingGroups : 1) * kGroupThreads;
    const int barrier = is_shared ? kItemBarrier : kGroupBarrier + Warpgroup::number();
    sync_threads_of(barrier, threads);
    const bool is_last = any_of_threads(barrier, threads, threadIdx.x == 0 && arrive_at_item(params, shares));
    if (is_last) writer.merge(shares, threadIdx.x, threads);
  }

  // Tiles of an item of which the other warpgroup has all rows.
  WL_DEVICE void pass_by(const WorkCursor& item) {
#pragma unroll 1
    for (int tile = item.begin(), end = item.end(); tile < end; ++tile) {
      storage.of_keys.wait_full(keys, false);
      storage.of_keys.release(keys);
      keys.next();
      storage.of_values.wait_full(values, false);
      storage.of_values.release(values);
      values.next();
    }
  }

  // An address that all lanes know to be the same: what is computed from it takes no registers of theirs.
  WL_DEVICE uint8_t* uniform(uint8_t* address) const { return memory + __shfl_sync(kFullMask, int(address - memory), 0); }
};

#endif

template <class Base>
__global__ void __launch_bounds__(384, 1) attention_cutlass_kernel(
    const __grid_constant__ AttentionParams params, const __grid_constant__ TensorMap query_map,
    const __grid_constant__ TensorMap key_map, const __grid_constant__ TensorMap value_map) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Config = CutlassConfig<Base>;
  extern __shared__ __align__(128) uint8_t shared[];
  uint8_t* memory = shared + (-shared_address(shared) & 1023);  // where the exchange of pieces begins anew
  __shared__ HopperStorage<Config> storage;
  const WorkStart& start = params.starts[blockIdx.x];
  storage.open(params, start);
  WorkCursor& next = storage.copies[Warpgroup::warp()].cursor;  // of each warp that copies
  if (Warpgroup::number() == kComputingGroups) copy_cursor(next, start.cursor);
  clear_padding_rows<Config>(params);
  __syncthreads();
  if (Warpgroup::number() == kComputingGroups) {
    give_registers<56>();
    CopyingGroup<Config>{params, {&query_map, &key_map, &value_map}, storage, memory, next, {}, {}}.work();
  } else {
    take_registers<224>();
    CutlassGroup<Config>{params, storage, memory, {}, {}, {}}.work();
  }
#endif
}

}  // namespace warploom::attention
