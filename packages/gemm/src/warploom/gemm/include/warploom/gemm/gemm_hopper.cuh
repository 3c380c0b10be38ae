// Matrix products on Hopper: persistent blocks in which one warpgroup copies operands by TMA and the others multiply by wgmma.
//
// One kernel for single, batched and grouped products: gemm_schedule.cuh says which tiles, gemm_copies.cuh brings their operands,
// gemm_products.cuh sums, gemm_partials.cuh joins what several blocks have summed, gemm_result.cuh writes.
#pragma once

#include "warploom/gemm/gemm_copies.cuh"
#include "warploom/gemm/gemm_partials.cuh"
#include "warploom/gemm/gemm_products.cuh"
#include "warploom/gemm/gemm_result.cuh"
#include "warploom/sync.cuh"

namespace warploom::gemm {

// grid: blocks that are all there at once, a multiple of kCluster. Dynamic shared memory: kStages * kStageBytes, and 1024.
template <class Base>
__global__ void __launch_bounds__(GemmConfig<Base>::kThreads, 1)
    gemm_kernel(const __grid_constant__ GemmParams params, const __grid_constant__ TensorMap tokens,
                const __grid_constant__ TensorMap weights) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Config = GemmConfig<Base>;
  constexpr int kCopyRegisters = 56, kProductRegisters = Config::kWarpgroups == 1 ? 232 : 224;
  extern __shared__ uint8_t dynamic[];
  uint8_t* memory = dynamic + (-shared_address(dynamic) & 1023);
  __shared__ GemmStorage<Config> storage;

  if (threadIdx.x == 0) tma_prefetch(&tokens), tma_prefetch(&weights);
  storage.open();
  const Schedule<Config> schedule{params, storage.schedule};
  wait_for_previous_kernel();
  schedule.open();
  __syncthreads();
  if constexpr (Config::kCluster > 1) cluster_sync();
  Share<Config> share(schedule, params);

  if (Warpgroup::number() == 0) {
    give_registers<kCopyRegisters>();
    if (Warpgroup::warp() == 0) {
      OperandCopies<Config> copies{{&tokens, &weights}, storage, memory, {}};
      copies.work(schedule, share);
      copies.wait_for_readers();
    } else if (Config::kHasBlocks && Warpgroup::warp() == 1) {
      ScaleCopies<Config> copies{params, storage, {}};
      copies.work(schedule, share);
    }
  } else {
    take_registers<kProductRegisters>();
    TileProducts<Config> products{storage, memory, {}};
    const TileResult<Config> result{params, storage};
#pragma unroll 1
    while (share.has_work()) {
      const Work work = share.work();
      Tile tile = schedule.tile(work.tile);
      if constexpr (Config::kCluster > 1) tile.first_column += int(cluster_rank()) * Config::kWeightTile;
      TileSums<Config> sums;
      products.run(sums, work.end_step - work.first_step);
      bool is_whole = true;
      if constexpr (Config::kSplits) is_whole = Partials<Config>{params, schedule, storage}.finish(sums, work);
      if (is_whole) result.write(sums, tile);
      share.next(work);
    }
  }
#endif
}

}  // namespace warploom::gemm
