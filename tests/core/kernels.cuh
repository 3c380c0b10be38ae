// Kernels of core's own tests.
#pragma once

#include "warploom/cluster.cuh"
#include "warploom/reduce.cuh"
#include "warploom/sync.cuh"
#include "warploom/tma.cuh"
#include "warploom/vec.cuh"

namespace warploom::test {

struct AddParams {
  const float* x;
  float* out;
  int64_t n;
  float value;
};

// out = x + value; waits for the previous kernel, so it can be launched programmatically dependent.
template <class Config>
__global__ void __launch_bounds__(Config::kThreads) add_kernel(const __grid_constant__ AddParams params) {
  wait_for_previous_kernel();
  allow_next_kernel();
  const int64_t i = int64_t(blockIdx.x) * Config::kThreads + threadIdx.x;
  if (i < params.n) params.out[i] = params.x[i] + params.value;
}

struct RowSumParams {
  const float* x;
  float* out;
  int columns;
};

// One row per block, staged through dynamic shared memory of the launch's size.
template <class Config>
__global__ void __launch_bounds__(Config::kThreads) row_sum_kernel(const __grid_constant__ RowSumParams params) {
  extern __shared__ float row[];
  __shared__ float scratch[kWarpSize];
  const float* x = params.x + int64_t(blockIdx.x) * params.columns;
  for (int i = threadIdx.x; i < params.columns; i += Config::kThreads) row[i] = x[i];
  __syncthreads();
  float sum = 0;
  for (int i = threadIdx.x; i < params.columns; i += Config::kThreads) sum += row[params.columns - 1 - i];
  sum = block_reduce<Config::kThreads>(sum, Sum(), scratch);
  if (threadIdx.x == 0) params.out[blockIdx.x] = sum;
}

struct ClusterParams {
  float* out;
};

// Every block writes the sum of rank + 1 over its cluster, read from the shared memory of its peers.
template <class Config>
__global__ void __launch_bounds__(32) cluster_kernel(const __grid_constant__ ClusterParams params) {
#if __CUDA_ARCH__ >= 900
  __shared__ float mine;
  if (threadIdx.x == 0) mine = float(cluster_rank() + 1);
  cluster_sync();
  float sum = 0;
  for (uint32_t rank = 0; rank < cluster_size(); ++rank) sum += load_cluster(map_to_rank(&mine, rank));
  cluster_sync();
  if (threadIdx.x == 0) params.out[blockIdx.x] = sum;
#endif
}

struct TileParams {
  int64_t tiles_x;
};

// Copies tiles from one descriptor to the other through shared memory.
template <class Config>
__global__ void __launch_bounds__(32)
    tile_copy_kernel(const __grid_constant__ TensorMap source, const __grid_constant__ TensorMap target,
                     const __grid_constant__ TileParams params) {
#if __CUDA_ARCH__ >= 900
  __shared__ alignas(1024) float tile[Config::kRows * Config::kColumns];
  __shared__ uint64_t barrier;
  const int x = int(blockIdx.x % params.tiles_x) * Config::kColumns;
  const int y = int(blockIdx.x / params.tiles_x) * Config::kRows;
  if (threadIdx.x == 0) {
    mbarrier_init(&barrier, 1);
    fence_barrier_init();
    fence_async_proxy();
    mbarrier_expect_bytes(&barrier, sizeof(tile));
    tma_load_2d(tile, &source, &barrier, x, y);
    mbarrier_wait(&barrier, 0);
    tma_store_2d(&target, tile, x, y);
    tma_store_commit();
    tma_store_wait<0>();
  }
#endif
}

}  // namespace warploom::test
