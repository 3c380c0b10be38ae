// Results of a warpgroup's warps in attention_hopper.cuh, 16 rows each.
#pragma once

#include "warploom/attention/hopper_storage.cuh"
#include "warploom/attention/result.cuh"
#include "warploom/global_store.cuh"
#include "warploom/mma.cuh"

namespace warploom::attention {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <class Config, class Tile>
struct HopperResult {
  using Writer = ResultWriter<Config>;
  using T = typename Config::Out;
  using Rows = SwizzledRows<kGroupRows, Config::kValueDim>;

  const Writer& writer;
  int slot;
  uint8_t* memory;       // of the warpgroup, where its queries were
  const TensorMap* map;  // of outputs, where TMA can copy the warpgroup's rows

  // Whether the warp has let TMA read `memory`.
  WL_DEVICE bool write(Tile& tile) const {
    tile.finish_sums();
    // A lane looks after one row, and lanes 16 to 31 after the same again.
    const int row = lane_id() % kWarpRows;
    const float sum = of_row(tile.sum, row), largest = of_row(tile.largest, row);
    const float lse = sum == 0.0f ? negative_infinity() : largest + log2f(sum);
    const auto to = writer.start_row(slot, int(threadIdx.x / kWarpSize) * kWarpRows + row, lse, lane_id() < kWarpRows);
    const float share = sum == 0.0f ? 0.0f : __fdividef(to.factor, sum);
    const float factors[2] = {__shfl_sync(kFullMask, share, lane_id() / 4), __shfl_sync(kFullMask, share, lane_id() / 4 + 8)};
    if (slot >= 0) {
      store_floats(to.partial, tile, factors);
    } else if constexpr (sizeof(T) == 4) {
      store_floats(to.out, tile, factors);
    } else {
      put_halves(tile, factors);
      if (map) return store_box();
      store_rows(to.out);
    }
    return false;
  }

 private:
  // What a lane that has the row knows.
  WL_DEVICE static float of_row(const float (&values)[2], int row) {
    const float low = __shfl_sync(kFullMask, values[0], row % 8 * 4), high = __shfl_sync(kFullMask, values[1], row % 8 * 4);
    return row < 8 ? low : high;
  }
  template <class Pointer>
  WL_DEVICE static Pointer start_of(Pointer mine, int row) {
    return reinterpret_cast<Pointer>(__shfl_sync(kFullMask, reinterpret_cast<uint64_t>(mine), row));
  }

  WL_DEVICE static void store_floats(float* mine, const Tile& tile, const float (&factors)[2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float* row = start_of(mine, lane_id() / 4 + 8 * i);
      if (!row) continue;
#pragma unroll
      for (int block = 0; block < 2 * Tile::kColumns; ++block) {
        const float2 values = {tile.out[block][2 * i] * factors[i], tile.out[block][2 * i + 1] * factors[i]};
        store_global_bits(reinterpret_cast<uint2*>(row + block * 8 + lane_id() % 4 * 2), reinterpret_cast<const uint2&>(values));
      }
    }
  }

  // Into shared memory.
  WL_DEVICE void put_halves(const Tile& tile, const float (&factors)[2]) const {
    sync_threads_of(kGroupBarrier + Warpgroup::number(), kGroupThreads);  // nobody reads queries any more
    const uint32_t start = shared_address(memory) + Rows::offset(Warpgroup::warp() * kWarpRows + lane_id() % 16, 0);
#pragma unroll
    for (int column = 0; column < Tile::kColumns; ++column) {
      uint32_t values[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* from = &tile.out[2 * column + i / 2][i % 2 * 2];
        values[i] = pack_operand<T>(from[0] * factors[i % 2], from[1] * factors[i % 2]);
      }
      store_matrices(Rows::onwards(start, 2 * column + lane_id() / 16), values);
    }
    fence_async_proxy();  // for TMA, which reads them, or writes the next queries there
  }

  // All rows of the warpgroup from there.
  WL_DEVICE bool store_box() const {
    sync_threads_of(kGroupBarrier + Warpgroup::number(), kGroupThreads);
    if (Warpgroup::warp() != 0) return false;
    if (lane_id() == 0) {
      const WorkCursor& item = writer.item;
      const int query = TileRow::of(writer.params, item, Warpgroup::number() * kGroupRows).query;
#pragma unroll
      for (int column = 0; column < Rows::kColumns; ++column) {
        tma_store_4d(map, memory + column * Rows::kColumnBytes, column * 64, 0, item.head, item.work.qo_start + query);
      }
      tma_store_commit();
    }
    return true;
  }

  // The warp's rows from there.
  WL_DEVICE void store_rows(T* mine) const {
    __syncwarp();
    const int first_row = Warpgroup::warp() * kWarpRows;
    constexpr int kSteps = kWarpRows * Rows::kPieces / kWarpSize;
    uint4 pieces[kSteps];
    T* to[kSteps];
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int row = (step * kWarpSize + lane_id()) / Rows::kPieces, piece = (step * kWarpSize + lane_id()) % Rows::kPieces;
      T* start = start_of(mine, row);
      to[step] = start ? start + piece * 8 : nullptr;
      pieces[step] = *reinterpret_cast<const uint4*>(memory + Rows::offset(first_row + row, piece));
    }
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      if (to[step]) store_global_bits(reinterpret_cast<uint4*>(to[step]), pieces[step]);
    }
    __syncwarp();
  }
};

#endif

}  // namespace warploom::attention
