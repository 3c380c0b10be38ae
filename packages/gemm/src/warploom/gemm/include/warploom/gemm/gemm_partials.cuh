// Tiles whose steps of k several blocks share: each stores its sums, and the last to come adds them all, in the order of k.
#pragma once

#include "warploom/gemm/gemm_products.cuh"
#include "warploom/sync.cuh"

namespace warploom::gemm {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <class Config>
struct Partials {
  using Sums = TileSums<Config>;
  static constexpr int kVectors = Config::kWaves * Sums::kBlocks;  // of a thread
  static constexpr int kFirstBarrier = 1;                          // of each warpgroup

  const GemmParams& params;
  const Schedule<Config>& schedule;
  GemmStorage<Config>& storage;

  // Whether the sums are whole now, and this warpgroup's to write; by all its threads.
  WL_DEVICE bool finish(Sums& sums, const Work& work) {
    if (work.first_step == 0 && work.end_step == params.k_steps) return true;
    const int64_t first_step = int64_t(work.tile) * params.k_steps;
    const int first = Share<Config>::block_of(schedule, params, first_step);
    const int last = Share<Config>::block_of(schedule, params, first_step + params.k_steps - 1);
    store(sums, part_of(blockIdx.x, work.tile));
    if (!is_last(work.tile, last - first)) return false;
    add(sums, work.tile, first, last);
    return true;
  }

 private:
  WL_DEVICE static int group() { return Warpgroup::number() - 1; }
  WL_DEVICE static void sync() { sync_threads_of(kFirstBarrier + group(), Warpgroup::kThreads); }

  // A block has at most two parts of tiles: one that its share begins with, and one that it ends with.
  WL_DEVICE float4* part_of(int block, int tile) const {
    const bool begins = Share<Config>::start_of(schedule, params, block) > int64_t(tile) * params.k_steps;
    const int64_t part = (int64_t(block) * 2 + begins) * Config::kWarpgroups + group();
    return reinterpret_cast<float4*>(params.partials) + part * kVectors * Warpgroup::kThreads + Warpgroup::thread();
  }

  WL_DEVICE void store(const Sums& sums, float4* part) const {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const float(&four)[4] = sums.of[i / Sums::kBlocks][i % Sums::kBlocks];
      __stcg(part + i * Warpgroup::kThreads, make_float4(four[0], four[1], four[2], four[3]));
    }
  }

  WL_DEVICE bool is_last(int tile, int others) {
    __threadfence();
    sync();
    if (Warpgroup::thread() == 0) {
      uint32_t* arrivals = params.arrivals + int64_t(tile) * Config::kWarpgroups + group();
      const bool last = atomicAdd(arrivals, 1) == uint32_t(others);
      if (last) *arrivals = 0;  // for the next launch
      __threadfence();
      storage.is_last[group()] = last;
    }
    sync();
    return storage.is_last[group()];
  }

  WL_DEVICE void add(Sums& sums, int tile, int first, int last) const {
    sums.clear();
#pragma unroll 1
    for (int block = first; block <= last; ++block) {
      const float4* part = part_of(block, tile);
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        const float4 four = __ldcg(part + i * Warpgroup::kThreads);
        float(&sum)[4] = sums.of[i / Sums::kBlocks][i % Sums::kBlocks];
        sum[0] += four.x, sum[1] += four.y, sum[2] += four.z, sum[3] += four.w;
      }
    }
  }
};

#endif

}  // namespace warploom::gemm
