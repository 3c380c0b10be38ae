// A message as packets: what a rank reduces, in and out of its own memory, and the sum of one packet of each rank.
#pragma once

#include "warploom/comm/mailbox.cuh"
#include "warploom/convert.cuh"
#include "warploom/vec.cuh"

namespace warploom::comm {

struct Message {
  const void* input;   // [numel]
  void* output;        // [numel]; may be the input
  int64_t numel;
};

// Elements as the terms of a call name them.
template <class T>
constexpr uint32_t kElement = 0;
template <>
constexpr uint32_t kElement<float> = 1;
template <>
constexpr uint32_t kElement<__half> = 2;
template <>
constexpr uint32_t kElement<__nv_bfloat16> = 3;

// Bit 0 to 3 of both addresses are zero: packets move as 16-byte accesses.
WL_DEVICE bool is_aligned(const Message& message) {
  return ((reinterpret_cast<uint64_t>(message.input) | reinterpret_cast<uint64_t>(message.output)) & 15) == 0;
}

template <class T>
WL_DEVICE int64_t packet_count(const Message& message) {
  return ceil_div(message.numel, int64_t(kVecWidth<T>));
}

// Packet `index` of the message, with zeros past its end.
template <class T>
WL_DEVICE uint4 load_packet(const Message& message, int64_t index, bool aligned) {
  using Packet = Vec<T, kVecWidth<T>>;
  const T* input = static_cast<const T*>(message.input);
  const int64_t first = index * kVecWidth<T>;
  if (aligned && first + kVecWidth<T> <= message.numel) return Packet::load(input + first).raw();
  Packet packet;
#pragma unroll
  for (int i = 0; i < kVecWidth<T>; ++i) {
    packet[i] = first + i < message.numel ? input[first + i] : from_float<T>(0.0f);
  }
  return packet.raw();
}

template <class T>
WL_DEVICE void store_packet(const Message& message, int64_t index, bool aligned, uint4 raw) {
  using Packet = Vec<T, kVecWidth<T>>;
  T* output = static_cast<T*>(message.output);
  const Packet packet = Packet::from_raw(raw);
  const int64_t first = index * kVecWidth<T>;
  if (aligned && first + kVecWidth<T> <= message.numel) {
    packet.store(output + first);
    return;
  }
#pragma unroll
  for (int i = 0; i < kVecWidth<T>; ++i) {
    if (first + i < message.numel) output[first + i] = packet[i];
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

// Iterations from one stage of a reduction to the next, in long messages: the stages overlap, NVLink always has packets to carry,
// and what has arrived is taken while it is in the L2. In short ones a stage waits for the end of the one before, which takes
// less code: every instruction is fetched once.
constexpr int kLag = 2;

// What is written where a peer's data never came: never plausible numbers.
WL_DEVICE uint4 nan_packet() { return make_uint4(kSealed, kSealed, kSealed, kSealed); }

template <int kRanks>
WL_DEVICE void set_own(uint4 (&packets)[kRanks], int rank, uint4 own) {
#pragma unroll
  for (int peer = 0; peer < kRanks; ++peer) {
    if (peer == rank) packets[peer] = own;
  }
}

}  // namespace warploom::comm
