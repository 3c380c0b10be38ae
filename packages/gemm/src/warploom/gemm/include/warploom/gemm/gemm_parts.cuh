// Tiles whose steps of k the blocks of a cluster share: sums go to the shared memory of those that finish them, which add them in
// the order of k.
#pragma once

#include "warploom/gemm/gemm_products.cuh"

namespace warploom::gemm {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <class Config>
struct PartSums {
  using Parts = TileParts<Config>;
  using Storage = GemmStorage<Config>;
  static constexpr int kWaves = Config::kWaves;
  static constexpr int kBlocks = Parts::kBlocks;  // of 8 columns, that a block finishes

  Storage& storage;
  uint8_t* memory;
  RingPlace<1> place;

  // Whether this block finishes some columns of the tile, which are `mine` then; by all computing warps.
  WL_DEVICE bool exchange(float (&mine)[kWaves][kBlocks][4], const TileSums<Config>& sums) {
    storage.parts.wait_free(place);
    send(sums);
    keep(mine, sums);
    const bool finishes = int(cluster_rank()) < Parts::kFinishers;
    if (finishes) {
      if (threadIdx.x == Warpgroup::kThreads) mbarrier_expect_bytes(&storage.parts.full[0], Parts::kBytes);
      storage.parts.wait_full(place, false);
      add(mine);
      __syncwarp();
      if (lane_id() < Config::kParts) mbarrier_arrive_at(map_to_rank(&storage.parts.free[0], lane_id()));
    }
    place.next();
    return finishes;
  }

 private:
  // Read anew, not kept in a register over the products.
  WL_DEVICE static int own_rank() {
    int rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
  }

  // Of what the other blocks have sent, in the order of their ranks.
  WL_DEVICE static int vector_of(int part, int wave, int block) {
    const int group = Warpgroup::number() - 1;
    return (((part * Config::kWarpgroups + group) * kWaves + wave) * kBlocks + block) * Warpgroup::kThreads + Warpgroup::thread();
  }

  // What a block finishes itself stays in its registers.
  WL_DEVICE void keep(float (&mine)[kWaves][kBlocks][4], const TileSums<Config>& sums) const {
    const int rank = own_rank();
#pragma unroll
    for (int wave = 0; wave < kWaves; ++wave) {
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float sum = sums.of[wave][block][i];
#pragma unroll
          for (int finisher = 1; finisher < Parts::kFinishers; ++finisher) {
            if (rank == finisher) sum = sums.of[wave][finisher * kBlocks + block][i];
          }
          mine[wave][block][i] = sum;
        }
      }
    }
  }

  WL_DEVICE void send(const TileSums<Config>& sums) const {
    float4* received = reinterpret_cast<float4*>(Storage::parts_of_sums(memory));
    const int rank = own_rank();
#pragma unroll
    for (int finisher = 0; finisher < Parts::kFinishers; ++finisher) {
      if (rank == finisher) continue;
      const uint32_t to = map_to_rank(received + vector_of(rank - int(rank > finisher), 0, 0), finisher);
      const uint32_t full = map_to_rank(&storage.parts.full[0], finisher);
#pragma unroll
      for (int wave = 0; wave < kWaves; ++wave) {
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
          const float(&four)[4] = sums.of[wave][finisher * kBlocks + block];
          const uint4 bits = {__float_as_uint(four[0]), __float_as_uint(four[1]), __float_as_uint(four[2]), __float_as_uint(four[3])};
          send_async(to + (wave * kBlocks + block) * Warpgroup::kThreads * uint32_t(sizeof(float4)), bits, full);
        }
      }
    }
  }

  WL_DEVICE void add(float (&mine)[kWaves][kBlocks][4]) const {
    const float4* received = reinterpret_cast<const float4*>(Storage::parts_of_sums(memory));
    const int rank = own_rank();
#pragma unroll
    for (int wave = 0; wave < kWaves; ++wave) {
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        float(&four)[4] = mine[wave][block];
        const float4 own = {four[0], four[1], four[2], four[3]};
        float4 sum = rank == 0 ? own : received[vector_of(0, wave, block)];
#pragma unroll
        for (int part = 1; part < Config::kParts; ++part) {
          const float4 next = part == rank ? own : received[vector_of(part - int(part > rank), wave, block)];
          sum.x += next.x, sum.y += next.y, sum.z += next.z, sum.w += next.w;
        }
        four[0] = sum.x, four[1] = sum.y, four[2] = sum.z, four[3] = sum.w;
      }
    }
  }
};

#endif

}  // namespace warploom::gemm
