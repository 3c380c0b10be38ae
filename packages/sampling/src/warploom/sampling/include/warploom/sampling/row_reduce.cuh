// Reductions over all blocks of a row: every thread of every block gets the result.
//
// Inside a block by shuffles and shared memory; between blocks each sends its own value to all others, which wait for the
// bytes on an mbarrier: one hop, no cluster barrier. The order is fixed, so sums are the same on every run.
//
// A value is any struct of up to 32 bytes with `static V none()` and `void merge(const V& other)`.
#pragma once

#include "warploom/cluster_async.cuh"

namespace warploom::sampling {

template <class V>
WL_DEVICE V shuffle_xor(const V& value, int offset) {
  static_assert(sizeof(V) % 4 == 0, "moves as words");
  constexpr int kWords = sizeof(V) / 4;
  V result;
  const auto* from = reinterpret_cast<const uint32_t*>(&value);
  auto* to = reinterpret_cast<uint32_t*>(&result);
#pragma unroll
  for (int i = 0; i < kWords; ++i) to[i] = __shfl_xor_sync(kFullMask, from[i], offset);
  return result;
}

// Rolled up: there are many reductions in a kernel, and they are not what takes the time.
template <class V>
WL_DEVICE V warp_merge(V value) {
#pragma unroll 1
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) value.merge(shuffle_xor(value, offset));
  return value;
}

// In more code, where it takes the time.
template <class V>
WL_DEVICE V warp_merge_fast(V value) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) value.merge(shuffle_xor(value, offset));
  return value;
}

struct alignas(16) RowReduceStorage {
  static constexpr int kMaxParts = 16;
  static constexpr int kMaxWarps = 16;
  static constexpr int kMessageBytes = 32;
  // Two of each, used in turn: a block may be one reduction ahead of another, and a warp of another warp.
  uint4 parts[2][kMaxParts][kMessageBytes / 16];
  uint4 warps[2][kMaxWarps][kMessageBytes / 16];
  uint64_t arrived[2];  // mbarriers that count the bytes of `parts`
};

struct RowReduce {
  RowReduceStorage& storage;
  int part;
  int parts;
  uint32_t round;

  // By all threads at the start of the kernel; a block barrier must follow before the first reduction.
  WL_DEVICE RowReduce(RowReduceStorage& storage, int part, int parts)
      : storage(storage), part(part), parts(parts), round(0) {
#if __CUDA_ARCH__ >= 900
    if (parts == 1) return;
    if (threadIdx.x == 0) {
      for (uint64_t& barrier : storage.arrived) {
        mbarrier_init(&barrier, 1);
        mbarrier_expect_bytes(&barrier, parts * RowReduceStorage::kMessageBytes);
      }
      fence_barrier_init();
    }
    cluster_arrive_relaxed();
#endif
  }

  // The value of the whole row.
  template <class V>
  WL_DEVICE V operator()(V value) {
    return warp_merge(exchange(over_block(value)));
  }

  // What the row's blocks have for each other: lane i of every warp gets that of block i. `value` is the same in all threads
  // of a block, and a block barrier lies between any two exchanges.
  template <class V>
  WL_DEVICE V exchange(const V& value) {
    static_assert(sizeof(V) <= RowReduceStorage::kMessageBytes, "fits a message");
    V result = lane_id() == 0 ? value : V::none();
#if __CUDA_ARCH__ >= 900
    if (parts > 1) result = over_parts(value);
#endif
    ++round;
    return result;
  }

  // A value for every warp: lane i of every warp gets that of warp i. Has a block barrier.
  template <class V>
  WL_DEVICE V of_warps(const V& value) {
    uint4(&warps)[RowReduceStorage::kMaxWarps][2] = storage.warps[turn()];
    if (lane_id() == 0) *reinterpret_cast<V*>(warps[warp_id()]) = value;
    __syncthreads();
    return lane_id() < int(blockDim.x) / kWarpSize ? *reinterpret_cast<const V*>(warps[lane_id()]) : V::none();
  }

  // Of two copies of everything in shared memory, the one of the reduction that comes.
  WL_DEVICE uint32_t turn() const { return round & 1; }

 private:
  template <class V>
  WL_DEVICE V over_block(const V& value) {
    return warp_merge(of_warps(warp_merge(value)));
  }

#if __CUDA_ARCH__ >= 900
  template <class V>
  WL_DEVICE V over_parts(const V& value) {
    if (round == 0) cluster_wait();  // all blocks of the row run, and their barriers stand
    if (warp_id() == 0) send(value);
    uint64_t* arrived = &storage.arrived[turn()];
    mbarrier_wait(arrived, (round / 2) & 1);
    // For the next reduction but one, whose bytes come only after this block's part in the next.
    if (threadIdx.x == 0) mbarrier_expect_bytes(arrived, parts * RowReduceStorage::kMessageBytes);
    return lane_id() < parts ? *reinterpret_cast<const V*>(storage.parts[turn()][lane_id()]) : V::none();
  }

  // Lane 2 * peer + half sends 16 bytes.
  template <class V>
  WL_DEVICE void send(const V& value) {
    uint32_t words[RowReduceStorage::kMessageBytes / 4] = {};
    const auto* from = reinterpret_cast<const uint32_t*>(&value);
#pragma unroll
    for (int i = 0; i < int(sizeof(V)) / 4; ++i) words[i] = from[i];
    const int peer = lane_id() / 2;
    const bool upper = lane_id() % 2;
    const uint4 message = upper ? uint4{words[4], words[5], words[6], words[7]} : uint4{words[0], words[1], words[2], words[3]};
    if (peer < parts) {
      const uint32_t slot = map_to_rank(&storage.parts[turn()][part][upper], peer);
      send_async(slot, message, map_to_rank(&storage.arrived[turn()], peer));
    }
  }
#endif
};

}  // namespace warploom::sampling
