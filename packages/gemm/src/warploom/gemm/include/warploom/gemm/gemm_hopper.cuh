// Matrix products on Hopper: persistent blocks in which one warpgroup copies operands by TMA and the others multiply by wgmma.
//
// One kernel for single, batched and grouped products: gemm_schedule.cuh says which tiles, gemm_copies.cuh brings their operands,
// gemm_products.cuh sums, gemm_parts.cuh joins what the blocks of a cluster have summed, gemm_result.cuh writes.
#pragma once

#include "warploom/gemm/gemm_copies.cuh"
#include "warploom/gemm/gemm_parts.cuh"
#include "warploom/gemm/gemm_products.cuh"
#include "warploom/gemm/gemm_result.cuh"
#include "warploom/sync.cuh"

namespace warploom::gemm {

// grid: whole clusters. Dynamic shared memory: stages, what TileParts needs, and 1024 bytes.
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
  allow_next_kernel();  // its blocks come when these go
  schedule.open();
  __syncthreads();
  if constexpr (Config::kHasCluster) cluster_arrive_relaxed();

  if (Warpgroup::number() == 0) {
    give_registers<kCopyRegisters>();
    if constexpr (Config::kCluster > 1) cluster_wait();
    const Share<Config> share(schedule, params);
    if (Warpgroup::warp() == 0) {
      OperandCopies<Config>{{&tokens, &weights}, storage, memory, uint32_t(params.stage_bytes), {}}.work(schedule, share);
    } else if (Config::kHasBlocks && Warpgroup::warp() == 1) {
      ScaleCopies<Config>{params, storage, {}}.work(schedule, share);
    } else if constexpr (Config::kGathers) {
      using Gather = TokenGather<Config>;
      const int warp = Warpgroup::warp() - (Warpgroup::kWarps - Config::kGatherWarps);
      if (warp >= 0) Gather{params, storage, memory, {}}.work(schedule, share, warp * Gather::kRows);
    }
    if constexpr (Config::kParts > 1) cluster_wait();  // what a block copies for itself needs no other
  } else {
    take_registers<kProductRegisters>();
    if constexpr (Config::kHasCluster) cluster_wait();
    TileProducts<Config> products(storage, memory);
    PartSums<Config> parts{storage, memory, {}};
    const TileResult<Config> result{params, storage};
#pragma unroll 1
    for (Share<Config> share(schedule, params); share.has_work(); share.next()) {
      const Work work = share.work();
      TileSums<Config> sums;
      Tile& tile = storage.tiles[warp_id() - Warpgroup::kWarps];
      products.next_tile(tile, storage);
      products.run(sums, work.end_step - work.first_step);
      if constexpr (Config::kParts == 1) {
        result.write(sums.of, tile, 0);
      } else {
        float mine[Config::kWaves][PartSums<Config>::kBlocks][4];
        if (parts.exchange(mine, sums)) result.write(mine, tile, int(cluster_rank()) * PartSums<Config>::kBlocks * 8);
      }
    }
  }
  // A block must not be gone while others copy there or count in.
  if constexpr (Config::kHasCluster) cluster_sync();
#endif
}

}  // namespace warploom::gemm
