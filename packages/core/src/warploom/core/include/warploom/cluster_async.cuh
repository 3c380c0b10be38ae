// Small messages between the blocks of a cluster (sm_90) that complete on the receiver's mbarrier. One hop, where a store
// to the other block's shared memory and cluster_sync() take a memory fence and a barrier of all blocks.
#pragma once

#include "warploom/cluster.cuh"
#include "warploom/mbarrier.cuh"

namespace warploom {

#if __CUDA_ARCH__ >= 900

// First half of a cluster_sync() that orders no memory: says that the block runs. Pairs with cluster_wait().
WL_DEVICE void cluster_arrive_relaxed() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }

// At a barrier of any block of the cluster, by its address from map_to_rank.
WL_DEVICE void mbarrier_arrive_at(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Both addresses are of the receiving block, from map_to_rank; the barrier counts the bytes.
WL_DEVICE void send_async(uint32_t address, float x, float y, uint32_t barrier) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(address),
               "f"(x), "f"(y), "r"(barrier)
               : "memory");
}
WL_DEVICE void send_async(uint32_t address, const uint4& x, uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(address),
      "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w), "r"(barrier)
      : "memory");
}

#endif

}  // namespace warploom
