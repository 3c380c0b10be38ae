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
  WL_DEVICE static int vector_of(int part, int wave, int block) {
    const int group = Warpgroup::number() - 1;
    return (((part * Config::kWarpgroups + group) * kWaves + wave) * kBlocks + block) * Warpgroup::kThreads + Warpgroup::thread();
  }

  WL_DEVICE void send(const TileSums<Config>& sums) const {
    float4* received = reinterpret_cast<float4*>(Storage::parts_of_sums(memory));
#pragma unroll
    for (int finisher = 0; finisher < Parts::kFinishers; ++finisher) {
      const uint32_t to = map_to_rank(received + vector_of(int(cluster_rank()), 0, 0), finisher);
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
#pragma unroll
    for (int wave = 0; wave < kWaves; ++wave) {
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        float4 sum = received[vector_of(0, wave, block)];
#pragma unroll
        for (int part = 1; part < Config::kParts; ++part) {
          const float4 four = received[vector_of(part, wave, block)];
          sum.x += four.x, sum.y += four.y, sum.z += four.z, sum.w += four.w;
        }
        mine[wave][block][0] = sum.x, mine[wave][block][1] = sum.y, mine[wave][block][2] = sum.z, mine[wave][block][3] = sum.w;
      }
    }
  }
};

#endif

}  // namespace warploom::gemm
