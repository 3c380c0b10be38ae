// Mailboxes in peer memory: 16-byte packets whose payload is its own flag.
//
// A half of a rank's buffer is full of empty places. An empty word holds a bit pattern that no payload may hold: `kEmpty`,
// a NaN, which senders turn into another NaN. A sender writes packets without empty words, the owner spins on its own
// memory until no word of a packet is empty, takes the payload and empties the words again. No flag is sent and no
// barrier closes a call.
//
// Why this is right under the PTX memory model:
// * Arrival. Words are written and polled with relaxed operations of system scope, 32 bits each (a vector access is
//   four scalar ones in any order). Each word carries its own arrival, so no order between words is needed.
// * Reuse. A new packet never meets an old one: call.cuh.
// * Any bits. What is not a number may hold every pattern. Its packets carry two words, each in 64 bits with a flag,
//   which is the number of the call; they are emptied like the others.
#pragma once

#include "warploom/comm/call.cuh"
#include "warploom/comm/packet.cuh"

namespace warploom::comm {

constexpr uint32_t kEmpty = 0xffffffffu;   // NaN as fp32, and two NaNs as fp16 or bf16 pair
constexpr uint32_t kSealed = 0x7fff7fffu;  // likewise

WL_DEVICE void send_packet(uint4* slot, uint4 packet) {
  packet.x = packet.x == kEmpty ? kSealed : packet.x;
  packet.y = packet.y == kEmpty ? kSealed : packet.y;
  packet.z = packet.z == kEmpty ? kSealed : packet.z;
  packet.w = packet.w == kEmpty ? kSealed : packet.w;
  store_relaxed_system(slot, packet);
}

// Packets of four words that are never `kEmpty`.
struct PlainPackets {
  WL_DEVICE static uint4 load(const uint4* slot) { return load_relaxed_system(slot); }
  WL_DEVICE static void store(uint4* slot, uint4 packet) { store_relaxed_system(slot, packet); }
  WL_DEVICE bool arrived(uint4 packet) const {
    return packet.x != kEmpty && packet.y != kEmpty && packet.z != kEmpty && packet.w != kEmpty;
  }
};

// Packets of two words of any bits, each beside the flag of the call.
struct FlaggedPackets {
  uint32_t flag;

  WL_DEVICE explicit FlaggedPackets(const Call& call) : flag(call.number & 0x7fffffffu) {}  // not kEmpty
  WL_DEVICE static uint4 load(const uint4* slot) { return load_halves_relaxed_system(slot); }
  WL_DEVICE static void store(uint4* slot, uint4 packet) { store_halves_relaxed_system(slot, packet); }
  WL_DEVICE bool arrived(uint4 packet) const { return packet.y == flag && packet.w == flag; }
  WL_DEVICE void send(uint4* slot, uint2 words) const { store(slot, make_uint4(words.x, flag, words.y, flag)); }
};

// A look at one packet of each peer: slots lie `stride` packets apart in rank order, and this rank's own place in `packets`
// is left alone.
template <int kRanks, class Kind = PlainPackets>
WL_DEVICE void load_packets(uint4 (&packets)[kRanks], const uint4* slots, int64_t stride, int rank, Kind kind = {}) {
#pragma unroll
  for (int peer = 0; peer < kRanks; ++peer) {
    if (peer != rank) packets[peer] = kind.load(slots + peer * stride);
  }
}

// Wait for those that had not come by `load_packets`, and empty all their places. Returns false after giving up.
template <int kRanks, class Kind = PlainPackets>
WL_DEVICE bool await_packets(uint4 (&packets)[kRanks], uint4* slots, int64_t stride, const Mailboxes& boxes, Call& call,
                             uint32_t stage, Kind kind = {}) {
  const uint4 empty = make_uint4(kEmpty, kEmpty, kEmpty, kEmpty);
  Patience patience;
  for (;;) {
    look_at_terms(call, boxes);
    uint32_t missing = 0;
#pragma unroll
    for (int peer = 0; peer < kRanks; ++peer) {
      if (peer != boxes.rank && !kind.arrived(packets[peer])) missing |= 1u << peer;
    }
    if (missing == 0) break;
    if (patience.is_over(boxes, call)) {
      give_up(boxes, call, __ffs(missing) - 1, stage);
      return false;
    }
    load_packets(packets, slots, stride, boxes.rank, kind);
  }
#pragma unroll
  for (int peer = 0; peer < kRanks; ++peer) {
    if (peer != boxes.rank) kind.store(slots + peer * stride, empty);
  }
  return true;
}

template <int kRanks, class Kind = PlainPackets>
WL_DEVICE bool take_packets(uint4 (&packets)[kRanks], uint4* slots, int64_t stride, const Mailboxes& boxes, Call& call,
                            uint32_t stage, Kind kind = {}) {
  load_packets(packets, slots, stride, boxes.rank, kind);
  return await_packets(packets, slots, stride, boxes, call, stage, kind);
}

// Take the packet of one rank, which may be this one.
template <class Kind = PlainPackets>
WL_DEVICE bool take_packet(uint4& packet, uint4* slot, const Mailboxes& boxes, Call& call, uint32_t peer,
                           uint32_t stage, Kind kind = {}) {
  const auto has_arrived = [&] {
    packet = kind.load(slot);
    look_at_terms(call, boxes);
    return kind.arrived(packet);
  };
  if (!wait_until(has_arrived, boxes, call, peer, stage)) return false;
  kind.store(slot, make_uint4(kEmpty, kEmpty, kEmpty, kEmpty));
  return true;
}

// The same after a look at it.
template <class Kind = PlainPackets>
WL_DEVICE bool await_packet(uint4& packet, uint4* slot, const Mailboxes& boxes, Call& call, uint32_t peer,
                            uint32_t stage, Kind kind = {}) {
  if (!kind.arrived(packet)) return take_packet(packet, slot, boxes, call, peer, stage, kind);
  look_at_terms(call, boxes);
  kind.store(slot, make_uint4(kEmpty, kEmpty, kEmpty, kEmpty));
  return true;
}

}  // namespace warploom::comm
