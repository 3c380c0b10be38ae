// All-reduce over peer memory: one-shot (every rank sends its whole message to every peer) and two-shot
// (reduce-scatter, then all-gather, in one launch). Sums are taken in float32 in rank order, so every rank gets the
// same bits.
#pragma once

#include "warploom/comm/mailbox.cuh"
#include "warploom/common.cuh"
#include "warploom/convert.cuh"
#include "warploom/vec.cuh"

namespace warploom::comm {

enum Operation : uint32_t { kOneShotAllReduce = 1, kTwoShotAllReduce = 2 };

struct AllReduceParams {
  const void* input;   // [numel]
  void* output;        // [numel]; may be the input
  int64_t numel;
};

// Bit 0 to 3 of both addresses are zero: packets move as 16-byte accesses.
WL_DEVICE bool is_aligned(const AllReduceParams& params) {
  return ((reinterpret_cast<uint64_t>(params.input) | reinterpret_cast<uint64_t>(params.output)) & 15) == 0;
}

template <class T>
WL_DEVICE int64_t packet_count(const AllReduceParams& params) {
  return ceil_div(params.numel, int64_t(kVecWidth<T>));
}

// Packet `index` of the message, with zeros past its end.
template <class T>
WL_DEVICE uint4 load_packet(const AllReduceParams& params, int64_t index, bool aligned) {
  using Packet = Vec<T, kVecWidth<T>>;
  const T* input = static_cast<const T*>(params.input);
  const int64_t first = index * kVecWidth<T>;
  if (aligned && first + kVecWidth<T> <= params.numel) return Packet::load(input + first).raw();
  Packet packet;
#pragma unroll
  for (int i = 0; i < kVecWidth<T>; ++i) {
    packet[i] = first + i < params.numel ? input[first + i] : from_float<T>(0.0f);
  }
  return packet.raw();
}

template <class T>
WL_DEVICE void store_packet(const AllReduceParams& params, int64_t index, bool aligned, uint4 raw) {
  using Packet = Vec<T, kVecWidth<T>>;
  T* output = static_cast<T*>(params.output);
  const Packet packet = Packet::from_raw(raw);
  const int64_t first = index * kVecWidth<T>;
  if (aligned && first + kVecWidth<T> <= params.numel) {
    packet.store(output + first);
    return;
  }
#pragma unroll
  for (int i = 0; i < kVecWidth<T>; ++i) {
    if (first + i < params.numel) output[first + i] = packet[i];
  }
}

// The sum of one packet of each rank, rounded once.
template <class T, int kRanks>
WL_DEVICE uint4 sum_packets(const uint4 (&packets)[kRanks]) {
  using Packet = Vec<T, kVecWidth<T>>;
  float sum[kVecWidth<T>];
#pragma unroll
  for (int rank = 0; rank < kRanks; ++rank) {
    const Packet packet = Packet::from_raw(packets[rank]);
#pragma unroll
    for (int i = 0; i < kVecWidth<T>; ++i) sum[i] = rank == 0 ? to_float(packet[i]) : sum[i] + to_float(packet[i]);
  }
  Packet result;
#pragma unroll
  for (int i = 0; i < kVecWidth<T>; ++i) result[i] = from_float<T>(sum[i]);
  return result.raw();
}

// What is written where a peer's data never came: never plausible numbers.
WL_DEVICE uint4 nan_packet() { return make_uint4(kSealed, kSealed, kSealed, kSealed); }

template <int kRanks>
WL_DEVICE void set_own(uint4 (&packets)[kRanks], int rank, uint4 own) {
#pragma unroll
  for (int peer = 0; peer < kRanks; ++peer) {
    if (peer == rank) packets[peer] = own;
  }
}

// Config: T, the element type; kRanks; kMaxThreads.
template <class Config>
__global__ void __launch_bounds__(Config::kMaxThreads, 1)
    one_shot_all_reduce_kernel(const __grid_constant__ Mailboxes boxes,
                               const __grid_constant__ AllReduceParams params) {
  using T = typename Config::T;
  constexpr int kRanks = Config::kRanks;
  const bool aligned = is_aligned(params);
  const int64_t packets = packet_count<T>(params);
  const int64_t first = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  const uint32_t call = begin_call(boxes);

  // Slot of sender r in any rank's half: packets [r * packets, (r + 1) * packets).
  for (int64_t i = first; i < packets; i += step) {
    const uint4 own = load_packet<T>(params, i, aligned);
#pragma unroll
    for (int hop = 1; hop < kRanks; ++hop) {
      // Each rank starts at another peer, so that no receiver's link is hit by all at once.
      const int peer = (boxes.rank + hop) % kRanks;
      send_packet(boxes.half(peer, call) + boxes.rank * packets + i, own);
    }
  }
  for (int64_t i = first; i < packets; i += step) {
    uint4 taken[kRanks];
    set_own(taken, boxes.rank, load_packet<T>(params, i, aligned));
    const bool complete =
        take_packets(taken, boxes.half(boxes.rank, call) + i, packets, boxes, kOneShotAllReduce, call, 0);
    store_packet<T>(params, i, aligned, complete ? sum_packets<T>(taken) : nan_packet());
  }
}

// Config: T, the element type; kRanks; kMaxThreads.
template <class Config>
__global__ void __launch_bounds__(Config::kMaxThreads, 1)
    two_shot_all_reduce_kernel(const __grid_constant__ Mailboxes boxes,
                               const __grid_constant__ AllReduceParams params) {
  using T = typename Config::T;
  constexpr int kRanks = Config::kRanks;
  const int rank = boxes.rank;
  const bool aligned = is_aligned(params);
  // Every rank reduces one chunk. Chunks past the end of a short message hold zeros and are exchanged all the same,
  // because each call must take packets from every peer.
  const int64_t chunk = ceil_div(packet_count<T>(params), int64_t(kRanks));
  const int64_t first = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  const uint32_t call = begin_call(boxes);
  const int64_t gathered = kRanks * chunk;  // the half holds `kRanks` chunks to reduce, then as many reduced ones

  for (int64_t i = first; i < chunk; i += step) {
#pragma unroll
    for (int hop = 1; hop < kRanks; ++hop) {
      const int peer = (rank + hop) % kRanks;
      send_packet(boxes.half(peer, call) + rank * chunk + i, load_packet<T>(params, peer * chunk + i, aligned));
    }
  }
  for (int64_t i = first; i < chunk; i += step) {
    uint4 taken[kRanks];
    set_own(taken, rank, load_packet<T>(params, rank * chunk + i, aligned));
    const bool complete = take_packets(taken, boxes.half(rank, call) + i, chunk, boxes, kTwoShotAllReduce, call, 0);
    const uint4 sum = complete ? sum_packets<T>(taken) : nan_packet();
#pragma unroll
    for (int hop = 1; hop < kRanks; ++hop) {
      const int peer = (rank + hop) % kRanks;
      send_packet(boxes.half(peer, call) + gathered + rank * chunk + i, sum);
    }
    store_packet<T>(params, rank * chunk + i, aligned, sum);
  }
  // In place is safe: packet i of every chunk is read and written by one thread, and read first.
  for (int64_t i = first; i < chunk; i += step) {
    uint4 taken[kRanks];
    const bool complete =
        take_packets(taken, boxes.half(rank, call) + gathered + i, chunk, boxes, kTwoShotAllReduce, call, 1);
#pragma unroll
    for (int peer = 0; peer < kRanks; ++peer) {
      if (peer != rank) store_packet<T>(params, peer * chunk + i, aligned, complete ? taken[peer] : nan_packet());
    }
  }
}

}  // namespace warploom::comm
