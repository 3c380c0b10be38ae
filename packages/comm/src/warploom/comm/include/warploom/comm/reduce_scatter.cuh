// Reduce-scatter over peer memory: every rank sends each peer that peer's part, and sums what it gets for its own.
#pragma once

#include "warploom/comm/message.cuh"
#include "warploom/comm/shares.cuh"

namespace warploom::comm {

// The part of the message that goes to a rank; `message.numel` elements are one part, and the input has one for each rank.
template <class T>
WL_DEVICE Message part_of(const Message& message, int rank) {
  return {static_cast<const T*>(message.input) + rank * message.numel, message.output, message.numel};
}

// Config: T, the element type; kRanks; kMaxThreads; kLong, whether stages overlap.
template <class Config>
__global__ void __launch_bounds__(Config::kMaxThreads, 1)
    reduce_scatter_kernel(const __grid_constant__ Mailboxes boxes, const __grid_constant__ Message message) {
  using T = typename Config::T;
  constexpr int kRanks = Config::kRanks;
  using Packets = uint4[kRanks];
  const int rank = boxes.rank;
  const int64_t packets = packet_count<T>(message);
  const int64_t first = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  Call call(kReduceScatter, kElement<T>, message.numel);
  if (!begin_call(call, boxes)) return;

  const Message own = part_of<T>(message, rank);
  const bool aligned = is_aligned(own);
  const auto load_sent = [&](int64_t i, Packets& sent) {
#pragma unroll
    for (int hop = 1; hop < kRanks; ++hop) {
      const Message part = part_of<T>(message, (rank + hop) % kRanks);
      sent[hop] = load_packet<T>(part, i, is_aligned(part));
    }
  };
  const auto send = [&](int64_t i, const Packets& sent) {
#pragma unroll
    for (int hop = 1; hop < kRanks; ++hop) {
      send_packet(boxes.half((rank + hop) % kRanks, call) + rank * packets + i, sent[hop]);
    }
  };
  const auto load_parts = [&](int64_t i, Packets& parts) {
    set_own(parts, rank, load_packet<T>(own, i, aligned));
    load_packets(parts, boxes.half(rank, call) + i, packets, rank);
  };
  const auto reduce = [&](int64_t i, Packets& parts) {
    const bool complete = await_packets(parts, boxes.half(rank, call) + i, packets, boxes, call, 0);
    store_packet<T>(own, i, aligned, complete ? sum_packets<T>(parts) : nan_packet());
  };
  if constexpr (Config::kLong) {
    run_stages<2>(call, boxes, packets, int(first) / kWarpSize, int(step) / kWarpSize, [&](const int64_t (&at)[2]) {
      const bool sends = at[0] < packets, reduces = at[1] < packets;
      Packets sent, parts;  // loads go ahead of the stores of both stages
      if (sends) load_sent(at[0], sent);
      if (reduces) load_parts(at[1], parts);
      if (sends) send(at[0], sent);
      if (reduces) reduce(at[1], parts);
    });
  } else {
    Packets loaded;
    for (int64_t i = first; i < packets; i += step) load_sent(i, loaded), send(i, loaded);
    for (int64_t i = first; i < packets; i += step) load_parts(i, loaded), reduce(i, loaded);
  }
  end_call(call, boxes);
}

}  // namespace warploom::comm
