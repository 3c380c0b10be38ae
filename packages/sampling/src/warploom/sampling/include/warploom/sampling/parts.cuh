// Blocks that share a row.
#pragma once

#include "warploom/cluster.cuh"

namespace warploom::sampling {

// The blocks that share a row are those of a cluster, which has one block where the hardware or the launch has none.
#if __CUDA_ARCH__ >= 900
WL_DEVICE int row_parts() { return int(cluster_size()); }
WL_DEVICE int row_part() { return int(cluster_rank()); }
WL_DEVICE int64_t row_index() {
  uint32_t index;
  asm("mov.u32 %0, %%clusterid.x;" : "=r"(index));
  return index;
}
// Rows that the grid has at once.
WL_DEVICE int row_count() {
  uint32_t count;
  asm("mov.u32 %0, %%nclusterid.x;" : "=r"(count));
  return int(count);
}
#else
WL_DEVICE int row_parts() { return 1; }
WL_DEVICE int row_part() { return 0; }
WL_DEVICE int64_t row_index() { return blockIdx.x; }
WL_DEVICE int row_count() { return int(gridDim.x); }
#endif

// A barrier of all threads of a row's blocks.
WL_DEVICE void sync_parts(int parts) {
#if __CUDA_ARCH__ >= 900
  if (parts > 1) return cluster_sync();
#endif
  __syncthreads();
}

}  // namespace warploom::sampling
