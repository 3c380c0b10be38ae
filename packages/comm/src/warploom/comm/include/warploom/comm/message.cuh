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

// Numbers of a packet that are added up in float32.
template <class T>
using PacketSum = float[kVecWidth<T>];

template <class T>
WL_DEVICE void add_packet(PacketSum<T>& sum, uint4 raw) {
  const auto packet = Vec<T, kVecWidth<T>>::from_raw(raw);
#pragma unroll
  for (int i = 0; i < kVecWidth<T>; ++i) sum[i] += to_float(packet[i]);
}

template <class T>
WL_DEVICE uint4 round_packet(const PacketSum<T>& sum) {
  Vec<T, kVecWidth<T>> packet;
#pragma unroll
  for (int i = 0; i < kVecWidth<T>; ++i) packet[i] = from_float<T>(sum[i]);
  return packet.raw();
}

// The sum of one packet of each rank, rounded once.
template <class T, int kRanks>
WL_DEVICE uint4 sum_packets(const uint4 (&packets)[kRanks]) {
  PacketSum<T> sum;
  const auto first = Vec<T, kVecWidth<T>>::from_raw(packets[0]);  // not added to zero, which would change -0
#pragma unroll
  for (int i = 0; i < kVecWidth<T>; ++i) sum[i] = to_float(first[i]);
#pragma unroll
  for (int rank = 1; rank < kRanks; ++rank) add_packet<T>(sum, packets[rank]);
  return round_packet<T>(sum);
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

}  // namespace warploom::comm
