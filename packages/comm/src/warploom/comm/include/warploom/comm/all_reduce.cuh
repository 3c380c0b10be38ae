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

  uint4* to_reduce = boxes.half(rank, call);
  uint4* to_gather = to_reduce + gathered;

  // Packet i of every chunk goes through three stages, each some iterations behind the one before.
  for (int64_t i = first; i < chunk + 2 * kLag * step; i += step) {
    const int64_t reduced = i - kLag * step, done = i - 2 * kLag * step;
    const bool scatters = i < chunk, reduces = reduced >= 0 && reduced < chunk, gathers = done >= 0;
    uint4 sent[kRanks], parts[kRanks], sums[kRanks];
    const auto load_sent = [&](int hop) {
      if (scatters) sent[hop] = load_packet<T>(message, (rank + hop) % kRanks * chunk + i, aligned);
    };
    const auto scatter = [&](int hop) {
      if (scatters) send_packet(boxes.half((rank + hop) % kRanks, call) + rank * chunk + i, sent[hop]);
    };
    const auto load_parts = [&] {
      if (!reduces) return;
      set_own(parts, rank, load_packet<T>(message, rank * chunk + reduced, aligned));
      load_packets(parts, to_reduce + reduced, chunk, rank);
    };
    const auto reduce = [&] {
      if (!reduces) return;
      const bool complete = await_packets(parts, to_reduce + reduced, chunk, boxes, call, 0);
      const uint4 sum = complete ? sum_packets<T>(parts) : nan_packet();
#pragma unroll
      for (int hop = 1; hop < kRanks; ++hop) {
        send_packet(boxes.half((rank + hop) % kRanks, call) + gathered + rank * chunk + reduced, sum);
      }
      store_packet<T>(message, rank * chunk + reduced, aligned, sum);
    };
    const auto load_sums = [&] {
      if (gathers) load_packets(sums, to_gather + done, chunk, rank);
    };
    // In place is safe: packet i of every chunk is read and written by one thread, and read first.
    const auto gather = [&] {
      if (!gathers) return;
      const bool complete = await_packets(sums, to_gather + done, chunk, boxes, call, 1);
#pragma unroll
      for (int peer = 0; peer < kRanks; ++peer) {
        if (peer != rank) store_packet<T>(message, peer * chunk + done, aligned, complete ? sums[peer] : nan_packet());
      }
    };
    if constexpr (kRanks <= 4) {
      // Few ranks have few accesses in flight in each stage: those of all three go together.
#pragma unroll
      for (int hop = 1; hop < kRanks; ++hop) load_sent(hop);
      load_parts(), load_sums();
#pragma unroll
      for (int hop = 1; hop < kRanks; ++hop) scatter(hop);
      reduce(), gather();
    } else {
#pragma unroll
      for (int hop = 1; hop < kRanks; ++hop) load_sent(hop), scatter(hop);
      load_parts(), reduce(), load_sums(), gather();
    }
  }
  end_call(call, boxes);
}

}  // namespace warploom::comm
