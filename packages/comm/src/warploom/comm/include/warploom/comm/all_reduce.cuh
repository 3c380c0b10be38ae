// All-reduce over peer memory: one-shot (every rank sends its whole message to every peer) and two-shot
// (reduce-scatter, then all-gather, in one launch). Sums are taken in float32 in rank order, so every rank gets the
// same bits.
#pragma once

#include "warploom/comm/message.cuh"
#include "warploom/comm/shares.cuh"

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

// What happens to packet i of every chunk. The half holds `kRanks` chunks to reduce, then as many reduced ones.
template <class T, int kRanks>
struct TwoShotStages {
  using Packets = uint4[kRanks];

  const Mailboxes& boxes;
  const Message& message;
  Call& call;
  const bool aligned;
  // Every rank reduces one chunk; those past the end of a short message hold zeros.
  const int64_t chunk;
  uint4* const parts;
  uint4* const sums;

  WL_DEVICE TwoShotStages(const Mailboxes& boxes, const Message& message, Call& call)
      : boxes(boxes), message(message), call(call), aligned(is_aligned(message)),
        chunk(ceil_div(packet_count<T>(message), int64_t(kRanks))), parts(boxes.half(boxes.rank, call)),
        sums(parts + kRanks * chunk) {}

  WL_DEVICE int peer(int hop) const { return (boxes.rank + hop) % kRanks; }

  WL_DEVICE void load_sent(int64_t i, Packets& packets) {
#pragma unroll
    for (int hop = 1; hop < kRanks; ++hop) packets[hop] = load_packet<T>(message, peer(hop) * chunk + i, aligned);
  }
  WL_DEVICE void scatter(int64_t i, const Packets& packets) {
#pragma unroll
    for (int hop = 1; hop < kRanks; ++hop) send_packet(boxes.half(peer(hop), call) + boxes.rank * chunk + i, packets[hop]);
  }

  WL_DEVICE void load_parts(int64_t i, Packets& packets) {
    set_own(packets, boxes.rank, load_packet<T>(message, boxes.rank * chunk + i, aligned));
    load_packets(packets, parts + i, chunk, boxes.rank);
  }
  WL_DEVICE void reduce(int64_t i, Packets& packets) {
    const bool complete = await_packets(packets, parts + i, chunk, boxes, call, 0);
    const uint4 sum = complete ? sum_packets<T>(packets) : nan_packet();
#pragma unroll
    for (int hop = 1; hop < kRanks; ++hop) {
      send_packet(boxes.half(peer(hop), call) + (kRanks + boxes.rank) * chunk + i, sum);
    }
    store_packet<T>(message, boxes.rank * chunk + i, aligned, sum);
  }

  WL_DEVICE void load_sums(int64_t i, Packets& packets) { load_packets(packets, sums + i, chunk, boxes.rank); }
  // In place is safe: packet i of every chunk is read and written by one thread, and read first.
  WL_DEVICE void gather(int64_t i, Packets& packets) {
    const bool complete = await_packets(packets, sums + i, chunk, boxes, call, 1);
#pragma unroll
    for (int peer = 0; peer < kRanks; ++peer) {
      if (peer != boxes.rank) store_packet<T>(message, peer * chunk + i, aligned, complete ? packets[peer] : nan_packet());
    }
  }
};

// Config: T, the element type; kRanks; kMaxThreads; kLong, whether stages overlap.
template <class Config>
__global__ void __launch_bounds__(Config::kMaxThreads, 1)
    two_shot_all_reduce_kernel(const __grid_constant__ Mailboxes boxes,
                               const __grid_constant__ Message message) {
  using Stages = TwoShotStages<typename Config::T, Config::kRanks>;
  using Packets = typename Stages::Packets;
  constexpr int kRanks = Config::kRanks;
  const int64_t first = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  Call call(kTwoShotAllReduce, kElement<typename Config::T>, message.numel);
  if (!begin_call(call, boxes)) return;
  Stages stages(boxes, message, call);
  const int64_t chunk = stages.chunk;

  if constexpr (Config::kLong) {
    run_stages<3>(call, boxes, chunk, int(first) / kWarpSize, int(step) / kWarpSize, [&](const int64_t (&at)[3]) {
      const bool scatters = at[0] < chunk, reduces = at[1] < chunk, gathers = at[2] < chunk;
      Packets sent, parts, sums;  // loads go ahead of the stores of all stages
      if (scatters) stages.load_sent(at[0], sent);
      if (reduces) stages.load_parts(at[1], parts);
      if (gathers) stages.load_sums(at[2], sums);
      if (scatters) stages.scatter(at[0], sent);
      if (reduces) stages.reduce(at[1], parts);
      if (gathers) stages.gather(at[2], sums);
    });
  } else {
    Packets packets;
    for (int64_t i = first; i < chunk; i += step) stages.load_sent(i, packets), stages.scatter(i, packets);
    for (int64_t i = first; i < chunk; i += step) stages.load_parts(i, packets), stages.reduce(i, packets);
    for (int64_t i = first; i < chunk; i += step) stages.load_sums(i, packets), stages.gather(i, packets);
  }
  end_call(call, boxes);
}

}  // namespace warploom::comm
