// Reduce-scatter over peer memory: every rank sends each peer that peer's part, and sums what it gets for its own.
#pragma once

#include "warploom/comm/message.cuh"

namespace warploom::comm {

// The part of the message that goes to a rank; `message.numel` elements are one part, and the input has one for each rank.
template <class T>
WL_DEVICE Message part_of(const Message& message, int rank) {
  return {static_cast<const T*>(message.input) + rank * message.numel, message.output, message.numel};
}

// Config: T, the element type; kRanks; kMaxThreads.
template <class Config>
__global__ void __launch_bounds__(Config::kMaxThreads, 1)
    reduce_scatter_kernel(const __grid_constant__ Mailboxes boxes, const __grid_constant__ Message message) {
  using T = typename Config::T;
  constexpr int kRanks = Config::kRanks;
  const int rank = boxes.rank;
  const int64_t packets = packet_count<T>(message);
  const int64_t first = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  Call call(kReduceScatter, kElement<T>, message.numel);
  if (!begin_call(call, boxes)) return;

  for (int64_t i = first; i < packets; i += step) {
#pragma unroll
    for (int hop = 1; hop < kRanks; ++hop) {
      const int peer = (rank + hop) % kRanks;
      const Message part = part_of<T>(message, peer);
      send_packet(boxes.half(peer, call) + rank * packets + i, load_packet<T>(part, i, is_aligned(part)));
    }
  }
  const Message own = part_of<T>(message, rank);
  const bool aligned = is_aligned(own);
  for (int64_t i = first; i < packets; i += step) {
    uint4 taken[kRanks];
    set_own(taken, rank, load_packet<T>(own, i, aligned));
    const bool complete = take_packets(taken, boxes.half(rank, call) + i, packets, boxes, call, 0);
    store_packet<T>(own, i, aligned, complete ? sum_packets<T>(taken) : nan_packet());
  }
  end_call(call, boxes);
}

}  // namespace warploom::comm
