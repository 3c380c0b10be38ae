// All-reduce over peer memory: one-shot (every rank sends its whole message to every peer) and two-shot
// (reduce-scatter, then all-gather, in one launch). Sums are taken in float32 in rank order, so every rank gets the
// same bits.
#pragma once

#include "warploom/comm/message.cuh"

namespace warploom::comm {

// Config: T, the element type; kRanks; kMaxThreads.
template <class Config>
__global__ void __launch_bounds__(Config::kMaxThreads, 1)
    one_shot_all_reduce_kernel(const __grid_constant__ Mailboxes boxes,
                               const __grid_constant__ Message message) {
  using T = typename Config::T;
  constexpr int kRanks = Config::kRanks;
  const bool aligned = is_aligned(message);
  const int64_t packets = packet_count<T>(message);
  const int64_t first = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  Call call(kOneShotAllReduce, kElement<T>, message.numel);
  if (!begin_call(call, boxes)) return;

  // Slot of sender r in any rank's half: packets [r * packets, (r + 1) * packets).
  for (int64_t i = first; i < packets; i += step) {
    const uint4 own = load_packet<T>(message, i, aligned);
#pragma unroll
    for (int hop = 1; hop < kRanks; ++hop) {
      // Each rank starts at another peer, so that no receiver's link is hit by all at once.
      const int peer = (boxes.rank + hop) % kRanks;
      send_packet(boxes.half(peer, call) + boxes.rank * packets + i, own);
    }
  }
  for (int64_t i = first; i < packets; i += step) {
    uint4 taken[kRanks];
    set_own(taken, boxes.rank, load_packet<T>(message, i, aligned));
    const bool complete =
        take_packets(taken, boxes.half(boxes.rank, call) + i, packets, boxes, call, 0);
    store_packet<T>(message, i, aligned, complete ? sum_packets<T>(taken) : nan_packet());
  }
  end_call(call, boxes);
}

// Config: T, the element type; kRanks; kMaxThreads.
template <class Config>
__global__ void __launch_bounds__(Config::kMaxThreads, 1)
    two_shot_all_reduce_kernel(const __grid_constant__ Mailboxes boxes,
                               const __grid_constant__ Message message) {
  using T = typename Config::T;
  constexpr int kRanks = Config::kRanks;
  const int rank = boxes.rank;
  const bool aligned = is_aligned(message);
  // Every rank reduces one chunk; those past the end of a short message hold zeros.
  const int64_t chunk = ceil_div(packet_count<T>(message), int64_t(kRanks));
  const int64_t first = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  Call call(kTwoShotAllReduce, kElement<T>, message.numel);
  if (!begin_call(call, boxes)) return;
  const int64_t gathered = kRanks * chunk;  // the half holds `kRanks` chunks to reduce, then as many reduced ones

  const auto scatter = [&](int64_t i) {
#pragma unroll
    for (int hop = 1; hop < kRanks; ++hop) {
      const int peer = (rank + hop) % kRanks;
      send_packet(boxes.half(peer, call) + rank * chunk + i, load_packet<T>(message, peer * chunk + i, aligned));
    }
  };
  const auto reduce = [&](int64_t i) {
    uint4 taken[kRanks];
    set_own(taken, rank, load_packet<T>(message, rank * chunk + i, aligned));
    const bool complete = take_packets(taken, boxes.half(rank, call) + i, chunk, boxes, call, 0);
    const uint4 sum = complete ? sum_packets<T>(taken) : nan_packet();
#pragma unroll
    for (int hop = 1; hop < kRanks; ++hop) {
      const int peer = (rank + hop) % kRanks;
      send_packet(boxes.half(peer, call) + gathered + rank * chunk + i, sum);
    }
    store_packet<T>(message, rank * chunk + i, aligned, sum);
  };
  // In place is safe: packet i of every chunk is read and written by one thread, and read first.
  const auto gather = [&](int64_t i) {
    uint4 taken[kRanks];
    const bool complete = take_packets(taken, boxes.half(rank, call) + gathered + i, chunk, boxes, call, 1);
#pragma unroll
    for (int peer = 0; peer < kRanks; ++peer) {
      if (peer != rank) store_packet<T>(message, peer * chunk + i, aligned, complete ? taken[peer] : nan_packet());
    }
  };

  for (int64_t i = first; i < chunk + 2 * kLag * step; i += step) {
    const int64_t to_reduce = i - kLag * step, to_gather = i - 2 * kLag * step;
    if (i < chunk) scatter(i);
    if (to_reduce >= 0 && to_reduce < chunk) reduce(to_reduce);
    if (to_gather >= 0) gather(to_gather);
  }
  end_call(call, boxes);
}

}  // namespace warploom::comm
